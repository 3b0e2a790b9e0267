"""The operator ``ApplyRotaryPosEmb``, which MindSpore has on Ascend alone, as others compute it."""

from typing import Any

import mindspore as ms
import numpy as np

from gs_mindformers.tensors import to_numpy, to_tensor

ROTATION = "mindformers.modules.infer_attention.InferRotaryEmbedding"


def rotate(query: ms.Tensor, key: ms.Tensor, frequencies: Any, *_: Any, **__: Any) -> tuple[ms.Tensor, ms.Tensor]:
    """Halves of every head rotated, by the cosines and sines of each token.

    query, key: ``(batch, length, heads * size)``. frequencies: cosines and sines, of as many tokens, and what else the
    network has made of them. The results have the dtypes of ``query`` and ``key``.
    """
    cos, sin = (to_numpy(x).reshape(*key.shape[:2], 1, -1).astype(np.float32) for x in frequencies[:2])

    def rotated(x: ms.Tensor) -> ms.Tensor:
        given = to_numpy(x)
        heads = given.reshape(*x.shape[:2], -1, cos.shape[-1]).astype(np.float32)
        first, second = np.split(heads, 2, axis=-1)
        turned = heads * cos + np.concatenate([-second, first], -1) * sin
        return to_tensor(turned.astype(given.dtype).reshape(x.shape))

    return rotated(query), rotated(key)


class Rotation(ms.nn.Cell):
    """In the place of an ``InferRotaryEmbedding`` where its operator does not run."""

    def construct(self, *inputs: Any, **more: Any) -> tuple[ms.Tensor, ms.Tensor]:
        return rotate(*inputs, **more)
