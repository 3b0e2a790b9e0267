"""Choosing a range by the squared error it costs."""

from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gs_core import numerics
from gs_core.numerics import mse
from gs_schemas import QuantizationArgs

values = arrays(np.float32, (2, 3, 16), elements=st.floats(-100, 100, width=32))


def args(**more):
    return QuantizationArgs(**{"format": "int3", "granularity": "group", "group_size": 16} | more)


def error(group, fraction, numbers, importance=1.0):
    """Squared error of one group, in float64, when its range is shrunk to a fraction."""
    low, high = (np.array([end * np.float32(fraction)], np.float32) for end in (group.min(), group.max()))
    scale, zero_point = numerics.scale_from_range(low, high, numbers, "float32")
    rounded = numerics.decode(numerics.encode(group, scale, zero_point, numbers), scale, zero_point)
    return float((importance * (group.astype(np.float64) - rounded) ** 2).sum())


@given(values, st.booleans())
def test_it_is_never_worse_than_the_full_range(groups, symmetric):
    numbers = args(symmetric=symmetric)
    fractions = numerics.mse_fraction(groups, numbers, "float32")
    for place in np.ndindex(2, 3):
        full = error(groups[place], 1.0, numbers)
        assert error(groups[place], fractions[place], numbers) <= full * (1 + 1e-5)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_finer_search_finds_little_more(bits, symmetric):
    numbers = args(format=f"int{bits}", symmetric=symmetric)
    groups = np.random.default_rng(bits).standard_t(4, (2, 2, 64)).astype(np.float32)
    fractions = numerics.mse_fraction(groups, numbers, "float32")
    for place in np.ndindex(2, 2):
        best = min(error(groups[place], fraction, numbers) for fraction in np.linspace(0.2, 1, 200))
        assert error(groups[place], fractions[place], numbers) <= 1.06 * best


@pytest.mark.parametrize("format", ["int2", "int3", "int4", "int8", "fp8_e4m3"])
@pytest.mark.parametrize("weighed", [True, False])
@given(arrays(np.float32, (3, 5, 16), elements=st.floats(-100, 100, width=32)), st.randoms())
def test_what_is_left_out_because_it_clips_too_much_would_not_have_been_chosen(format, weighed, groups, random):
    groups = groups * np.array([random.choice([0.0, 1.0, 1e3]) for _ in range(16)], np.float32)
    importance = np.array([random.random() for _ in range(16)], np.float32) if weighed else None
    found = numerics.mse_fraction(groups, args(format=format), "bfloat16", importance)
    with mock.patch.object(mse, "AT_ONCE", mse.STEPS):
        np.testing.assert_array_equal(found, numerics.mse_fraction(groups, args(format=format), "bfloat16", importance))


def test_one_outlier_among_many_is_clipped():
    group = np.array([[[*np.linspace(-1, 1, 999), 4]]], np.float32)
    assert numerics.mse_fraction(group, args(), "float32")[0, 0] < 0.5


def test_an_outlier_that_matters_is_not():
    group = np.array([[[*np.linspace(-1, 1, 99), 4]]], np.float32)
    importance = np.array([*[1e-3] * 99, 1.0], np.float32)
    assert numerics.mse_fraction(group, args(symmetric=False), "float32", importance)[0, 0] > 0.9


@given(arrays(np.float32, (4, 32), elements=st.floats(-100, 100, width=32)))
def test_a_weight_asked_for_by_mse_has_no_larger_error(weight):
    errors = []
    for observer in ("mse", "minmax"):
        tensor = numerics.quantize_weight(weight, args(observer=observer), "float32")
        errors.append(((numerics.dequantize(tensor) - weight) ** 2).sum(axis=1))
    assert (errors[0] <= errors[1] * (1 + 1e-5)).all()


def test_importance_is_by_input_feature():
    """The same importance for all is none at all; a feature that alone matters gets a range that suits it."""
    weight = np.random.default_rng(0).standard_normal((8, 32)).astype(np.float32)
    numbers = args(observer="mse", group_size=32)
    plain = numerics.weight_params(weight, numbers, "float32")[0]
    same = numerics.weight_params(weight, numbers, "float32", np.full(32, 3.0, np.float32))[0]
    assert (plain == same).all()
    importance = np.zeros(32, np.float32)
    importance[5] = 1
    scale = numerics.weight_params(weight, numbers, "float32", importance)[0]
    rounded = numerics.dequantize(numerics.quantize_with(weight, scale, None, numbers))
    plainly = numerics.dequantize(numerics.quantize_with(weight, plain, None, numbers))
    assert (np.abs(rounded - weight)[:, 5] <= np.abs(plainly - weight)[:, 5]).all()
    assert np.abs(rounded - weight)[:, 5].max() < np.abs(plainly - weight)[:, 5].max()


def test_minmax_keeps_every_value():
    low, high = numerics.minmax(np.array([[[3.0, -1.0, 2.0]]]))
    assert (low.tolist(), high.tolist()) == ([[-1.0]], [[3.0]])
