"""MindSpore's tensors as NumPy arrays and back, sharing memory on the CPU."""

from typing import Any

import mindspore as ms
import numpy as np

from gs_core.arrays import RawTensor, from_raw, numpy_dtype, to_raw

NARROW = (ms.bfloat16, ms.float16)
"""What is computed in float32 instead: MindSpore's CPU has no bfloat16 products, and calibration wants the digits."""


def to_numpy(x: ms.Tensor) -> np.ndarray:
    """The same numbers; bfloat16 as ml_dtypes' bfloat16. Shares memory where the tensor is contiguous on the CPU."""
    array = x.asnumpy()
    return array.view(np.uint16).view(numpy_dtype("bfloat16")) if array.dtype.name == "bfloat16" else array


def to_tensor(x: np.ndarray) -> ms.Tensor:
    """A tensor over the memory of ``x`` (copied when it is not contiguous)."""
    x = np.ascontiguousarray(x)
    if x.dtype.name == "bfloat16":
        return ms.Tensor.from_numpy(x.view(np.int16)).view(ms.bfloat16)
    return ms.Tensor.from_numpy(x)


def to_parameter(name: str, x: np.ndarray) -> ms.Parameter:
    """A parameter of that name with a copy of the numbers."""
    return ms.Parameter(to_tensor(x), name=name, requires_grad=False)


def dtype_name(x: ms.Tensor) -> str:
    """``bfloat16``, ``float32``, … as the core says it."""
    return str(x.dtype).lower()


def to_file(x: ms.Tensor) -> RawTensor:
    """The bytes of ``x`` for a file."""
    return to_raw(to_numpy(x))


def from_file(raw: RawTensor) -> ms.Tensor:
    return to_tensor(from_raw(raw))


def identity(x: ms.Tensor) -> tuple[int, int]:
    """Equal for two views of the same numbers, as long as both are alive."""
    return x.data_ptr(), x.nelement()


def logits(output: Any) -> ms.Tensor:
    """The logits in what a causal language model returns."""
    return output if isinstance(output, ms.Tensor) else output[0]
