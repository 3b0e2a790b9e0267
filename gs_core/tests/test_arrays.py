"""Arrays by dtype names, and their bytes."""

import array_api_strict
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gs_core.arrays import SAFETENSORS_DTYPES, astype, dtype_name, from_raw, namespace, numpy_dtype, to_numpy, to_raw

NAMES = [name for name, _ in SAFETENSORS_DTYPES.values()]


@pytest.mark.parametrize("name", NAMES)
def test_every_dtype_survives_its_bytes(name):
    array = np.array([[0, 1, 1], [1, 0, 1]]).astype(numpy_dtype(name))
    raw = to_raw(array)
    assert (raw.dtype, raw.shape, raw.nbytes) == (name, (2, 3), 6 * array.itemsize)
    back = from_raw(raw)
    assert back.dtype == array.dtype
    assert (back == array).all()


def test_bytes_are_little_endian_and_in_c_order():
    assert to_raw(np.array([[1, 2], [3, 4]], np.int16).T).data.tobytes() == bytes([1, 0, 3, 0, 2, 0, 4, 0])


@given(st.floats(-(2.0**126), 2.0**126, width=32))
def test_bfloat16_rounds_half_to_even(value):
    bits = int(np.float32(value).view(np.uint32))
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16  # the textbook formula
    assert int(astype(np.array([value], np.float32), "bfloat16").view(np.uint16)[0]) == rounded


@given(arrays(np.float32, 5, elements=st.floats(-1e4, 1e4, width=32)))
def test_a_strict_namespace_rounds_like_numpy(values):
    strict = array_api_strict.asarray(values)
    assert dtype_name(strict) == dtype_name(values) == "float32"
    assert dtype_name(astype(strict, "int8")) == "int8"
    assert (np.asarray(astype(strict, "float64")) == astype(values, "float64")).all()


def test_the_same_dtype_is_no_copy():
    array = np.ones(3, np.float32)
    assert astype(array, "float32") is array
    assert to_numpy(array) is array
    assert namespace(array).__name__.endswith("numpy")
    assert dtype_name(array.astype(ml_dtypes.bfloat16)) == "bfloat16"
