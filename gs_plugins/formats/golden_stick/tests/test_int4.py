"""qint4x2: which bits are whose, and that nothing is lost."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gs_core.arrays import PACKED_INT4, from_raw
from gs_golden_stick.int4 import pack, unpack


def test_a_byte_holds_two_output_features_the_even_one_low():
    codes = np.array([[1, 2, 3], [-8, 7, -1]], np.int8)  # two output features, three input features
    packed = pack(codes)
    assert (packed.dtype, packed.shape) == (PACKED_INT4, (3, 1))
    assert packed.data.tolist() == [0x81, 0x72, 0xF3]


@settings(deadline=None, derandomize=True)
@given(st.data())
def test_unpacking_gives_back_what_was_packed(data):
    shape = data.draw(st.tuples(st.integers(1, 4).map(lambda n: 2 * n), st.integers(1, 9)))
    codes = data.draw(arrays(np.int8, shape, elements=st.integers(-8, 7)))
    unpacked = unpack(from_raw(pack(codes)))
    assert unpacked.dtype == np.int8
    np.testing.assert_array_equal(unpacked, codes)
