"""Codes in int32 words: what each bit means, and that nothing is lost."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gs_compressed_tensors.packing import pack_rows, unpack_rows


def words(*unsigned: int) -> np.ndarray:
    """int32 words by their bit patterns."""
    return np.array([unsigned], np.uint32).view(np.int32)


def test_the_first_value_lies_in_the_lowest_bits():
    """-8 is stored as 0, and stands rightmost in the hexadecimal number."""
    codes = np.arange(-8, 0, dtype=np.int8)[None]
    np.testing.assert_array_equal(pack_rows(codes, 4), words(0x76543210))


@pytest.mark.parametrize(
    ("bits", "codes", "expected"),
    [
        (4, [0] * 8, 0x88888888),
        (4, [7] * 8, 0xFFFFFFFF),
        (4, [-8] * 8, 0x00000000),
        (8, [-128, -127, 0, 127], 0xFF800100),
        (2, [-2, -1, 0, 1] * 4, 0xE4E4E4E4),
    ],
)
def test_a_value_is_stored_plus_half_the_range(bits, codes, expected):
    np.testing.assert_array_equal(pack_rows(np.array([codes], np.int8), bits), words(expected))


def test_a_row_ends_with_its_word():
    """Nine values of four bits take two words; what is left over is zero bits."""
    codes = np.array([[1] * 9, [2] * 9], np.int8)
    packed = pack_rows(codes, 4)
    np.testing.assert_array_equal(packed, np.vstack([words(0x99999999, 0x9), words(0xAAAAAAAA, 0xA)]))


def test_three_bits_run_on_from_one_word_into_the_next():
    """The eleventh value has two bits in the first word and one in the second."""
    codes = np.array([[-4] * 10 + [3, -4]], np.int8)
    np.testing.assert_array_equal(pack_rows(codes, 3), words(0b11 << 30, 0b1))


@pytest.mark.parametrize("bits", range(2, 9))
@settings(deadline=None, derandomize=True)
@given(data=st.data())
def test_unpacking_gives_back_what_was_packed(bits, data):
    shape = data.draw(st.tuples(st.integers(1, 5), st.integers(1, 40)))
    limit = 1 << (bits - 1)
    codes = data.draw(arrays(np.int8, shape, elements=st.integers(-limit, limit - 1)))
    packed = pack_rows(codes, bits)
    assert packed.dtype == np.int32 and packed.shape == (shape[0], -(-shape[1] * bits // 32))
    np.testing.assert_array_equal(unpack_rows(packed, bits, shape[1]), codes)
