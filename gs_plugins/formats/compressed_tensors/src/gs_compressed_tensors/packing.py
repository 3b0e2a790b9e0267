"""Codes of 2 to 8 bits in int32 words: the value plus half the code range, first value in the lowest bits.

Values follow one another without a gap, so 32 of them fill exactly ``bits`` words and those of 3, 5, 6 or 7 bits run on
from one word into the next. This is ``pack_to_int32`` of compressed-tensors since 0.19; up to 0.17 it left the bits
unused that hold no whole value, which at 2, 4 and 8 bits is the same.
"""

import numpy as np

PERIOD = 32  # values, after which they begin with a word again


def pack_rows(codes: np.ndarray, bits: int) -> np.ndarray:
    """int8 ``(rows, columns)`` to int32 ``(rows, ceil(columns * bits / 32))``."""
    rows, columns = codes.shape
    periods = -(-columns // PERIOD)
    unsigned = np.zeros((rows, periods * PERIOD), np.uint32)
    unsigned[:, :columns] = codes.astype(np.int32) + (1 << (bits - 1))
    lanes = unsigned.reshape(rows, periods, PERIOD)
    words = np.zeros((rows, periods, bits), np.uint32)
    for lane in range(PERIOD):
        word, shift = divmod(lane * bits, 32)
        words[:, :, word] |= lanes[:, :, lane] << np.uint32(shift)
        if shift + bits > 32:
            words[:, :, word + 1] |= lanes[:, :, lane] >> np.uint32(32 - shift)
    packed = words.reshape(rows, -1)[:, : -(-columns * bits // 32)]
    return np.ascontiguousarray(packed).view(np.int32)


def unpack_rows(packed: np.ndarray, bits: int, columns: int) -> np.ndarray:
    """The inverse of ``pack_rows``."""
    rows = len(packed)
    periods = -(-columns // PERIOD)
    padded = np.zeros((rows, periods * bits), np.uint32)
    padded[:, : packed.shape[1]] = packed.view(np.uint32)
    words = padded.reshape(rows, periods, bits)
    lanes = np.empty((rows, periods, PERIOD), np.int32)
    for lane in range(PERIOD):
        word, shift = divmod(lane * bits, 32)
        value = words[:, :, word] >> np.uint32(shift)
        if shift + bits > 32:
            value |= words[:, :, word + 1] << np.uint32(32 - shift)
        lanes[:, :, lane] = value & np.uint32((1 << bits) - 1)
    return (lanes.reshape(rows, -1)[:, :columns] - (1 << (bits - 1))).astype(np.int8)
