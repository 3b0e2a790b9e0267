"""Codes of 2 to 8 bits in int32 words: the value plus half the code range, first value in the lowest bits.

Values follow one another without a gap, so 32 of them fill exactly ``bits`` words and those of 3, 5, 6 or 7 bits run on
from one word into the next. This is ``pack_to_int32`` of compressed-tensors since 0.19; up to 0.17 it left the bits
unused that hold no whole value, which at 2, 4 and 8 bits is the same.
"""

import numpy as np


def pack_rows(codes: np.ndarray, bits: int) -> np.ndarray:
    """int8 ``(rows, columns)`` to int32 ``(rows, ceil(columns * bits / 32))``."""
    rows, columns = codes.shape
    packed = np.zeros((rows, 4 * -(-columns * bits // 32)), np.uint8)
    unsigned = codes.astype(np.uint8) + np.uint8(1 << (bits - 1))
    if 8 % bits == 0:  # values lie within bytes
        for lane in range(8 // bits):
            part = unsigned[:, lane :: 8 // bits]
            packed[:, : part.shape[1]] |= part << np.uint8(lane * bits)
    else:
        every = np.unpackbits(unsigned[:, :, None], axis=2, count=bits, bitorder="little").reshape(rows, -1)
        packed[:, : -(-columns * bits // 8)] = np.packbits(every, axis=1, bitorder="little")
    return packed.view(np.int32)


def unpack_rows(packed: np.ndarray, bits: int, columns: int) -> np.ndarray:
    """The inverse of ``pack_rows``."""
    rows, flat = len(packed), np.ascontiguousarray(packed).view(np.uint8)
    if 8 % bits == 0:
        lanes = [flat >> np.uint8(lane) for lane in range(0, 8, bits)]
        unsigned = np.stack(lanes, axis=2).reshape(rows, -1)[:, :columns] & np.uint8((1 << bits) - 1)
    else:
        every = np.unpackbits(flat, axis=1, count=columns * bits, bitorder="little").reshape(rows, columns, bits)
        unsigned = np.packbits(every, axis=2, bitorder="little")[:, :, 0]
    return (unsigned - np.uint8(1 << (bits - 1))).view(np.int8)
