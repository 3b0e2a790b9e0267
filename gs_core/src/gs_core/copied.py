"""Norms, embeddings and biases are copied to the output. Copying checks them for NaN and infinity."""

from collections.abc import Iterator

import numpy as np

from gs_core.arrays import Array, RawTensor, numpy_dtype, to_raw
from gs_core.errors import CheckpointError
from gs_core.storage import DerivedTensor, StoredTensor, Tensor

EXPONENT = {"float64": (8, 0x7FF0 << 48), "float32": (4, 0x7F80 << 16), "float16": (2, 0x7C00), "bfloat16": (2, 0x7F80)}
"""Bytes of an element, and its exponent bits. All exponent bits are set in NaN and infinity, and in no other number."""


def checked(name: str, tensor: Tensor) -> Tensor:
    """A tensor with the same content that is checked when it is written. Each byte is read once.

    Writing a float tensor with NaN or infinity raises ``CheckpointError``.
    """
    if not isinstance(tensor, StoredTensor | DerivedTensor):
        raw = tensor if isinstance(tensor, RawTensor) else to_raw(tensor)
        _check(name, raw)
        return tensor
    if tensor.dtype not in EXPONENT:
        return tensor

    def pieces() -> Iterator[RawTensor]:
        for chunk in tensor.chunks():
            data = np.frombuffer(chunk, np.uint8)
            piece = RawTensor(tensor.dtype, (data.nbytes // numpy_dtype(tensor.dtype).itemsize,), data)
            _check(name, piece)
            yield piece

    def make() -> RawTensor:
        raw = tensor.read()
        _check(name, raw)
        return raw

    return DerivedTensor(tensor.name, tensor.dtype, tensor.shape, make, pieces)


def _check(name: str, raw: RawTensor) -> None:
    if raw.dtype not in EXPONENT:
        return
    size, exponent = EXPONENT[raw.dtype]
    bits: Array = raw.data.view(f"uint{8 * size}")
    mask = bits.dtype.type(exponent)
    if ((bits & mask) == mask).any():
        raise CheckpointError(
            f"{name}: the tensor contains NaN or infinity; the source is damaged, copy or download it again"
        )
