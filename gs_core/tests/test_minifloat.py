"""Floating-point codes against the tables of their formats."""

import array_api_strict
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gs_core.numerics.minifloat import nearest
from gs_schemas import NUMBER_FORMATS

POSITIVE = {
    "fp4_e2m1": [0, 0.5, 1, 1.5, 2, 3, 4, 6],
    "fp6_e2m3": [*np.arange(0, 2, 0.125), *np.arange(2, 4, 0.25), *np.arange(4, 7.6, 0.5)],
    "fp6_e3m2": [m * 2.0**e for e in range(-4, 3) for m in range(4, 8)] + [0, 0.0625, 0.125, 0.1875],
}
"""OCP MX 1.0, tables 2 to 5, and what they count out."""
EIGHT_BITS = {"fp8_e4m3": ml_dtypes.float8_e4m3fn, "fp8_e5m2": ml_dtypes.float8_e5m2}


def generic(x: np.ndarray, name: str) -> np.ndarray:
    """By arithmetic alone, in a namespace that has no such dtype."""
    return np.asarray(nearest(array_api_strict.asarray(x), NUMBER_FORMATS[name]))


@pytest.mark.parametrize("name", POSITIVE)
def test_every_number_of_a_small_format_is_its_own_nearest(name):
    numbers = np.array(sorted(POSITIVE[name]), np.float32)
    assert len(numbers) == 2 ** (NUMBER_FORMATS[name].bits - 1)
    assert numbers.max() == NUMBER_FORMATS[name].maximum
    np.testing.assert_array_equal(generic(numbers, name), numbers)
    middles = (numbers[1:] + numbers[:-1]) / 2
    for nudge, wanted in ((0.999, numbers[:-1]), (1.001, numbers[1:])):
        np.testing.assert_array_equal(generic((middles * nudge).astype(np.float32), name), wanted)
    even = np.where(np.arange(len(middles)) % 2 == 0, numbers[:-1], numbers[1:])
    np.testing.assert_array_equal(generic(middles, name), even)  # a tie goes to the even code


@pytest.mark.parametrize("name", EIGHT_BITS)
def test_every_code_of_eight_bits_and_every_tie_between_two(name):
    codes = np.arange(256, dtype=np.uint8).view(EIGHT_BITS[name]).astype(np.float32)
    numbers = np.unique(codes[np.isfinite(codes)])
    x = np.concatenate([numbers, (numbers[1:] + numbers[:-1]) / 2])
    wanted = x.astype(EIGHT_BITS[name]).astype(np.float32)
    np.testing.assert_array_equal(generic(x, name), wanted)
    np.testing.assert_array_equal(nearest(x, NUMBER_FORMATS[name]), wanted)


@pytest.mark.parametrize("name", EIGHT_BITS)
@given(x=st.lists(st.floats(-(2.0**20), 2.0**20, width=32), min_size=1))
def test_arithmetic_and_dtype_agree_and_saturate(name, x):
    x, number = np.array(x, np.float32), NUMBER_FORMATS[name]
    found = nearest(x, number)
    np.testing.assert_array_equal(found, generic(x, name))
    assert np.abs(found).max() <= number.maximum
    beyond = np.abs(x) >= number.maximum
    np.testing.assert_array_equal(np.abs(found[beyond]), np.full(beyond.sum(), number.maximum, np.float32))
