"""MindSpore's ``qint4x2``: two output features of int4 in a byte, the even one in the low half.

The weight is stored with its input features first, ``(in, out / 2)``, whichever way its layer multiplies.
"""

import numpy as np

from gs_core.arrays import PACKED_INT4, RawTensor


def pack(codes: np.ndarray) -> RawTensor:
    """int8 ``(out, in)`` in [-8, 7] to bytes ``(in, out / 2)``. ``out`` must be even."""
    halves = codes.T.astype(np.uint8) & 0x0F
    packed = np.ascontiguousarray(halves[:, 1::2] << 4 | halves[:, 0::2])
    return RawTensor(PACKED_INT4, packed.shape, packed.reshape(-1))


def unpack(packed: np.ndarray) -> np.ndarray:
    """The inverse: int8 ``(in, out / 2)`` to int8 ``(out, in)``."""
    low, high = packed << 4 >> 4, packed >> 4  # arithmetic shifts carry the sign
    return np.ascontiguousarray(np.stack([low, high], axis=-1).reshape(packed.shape[0], -1).T)
