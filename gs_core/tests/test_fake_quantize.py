"""Activations as an engine sees them."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gs_core import numerics
from gs_schemas import QuantizationArgs

TOKEN = QuantizationArgs(format="int8", granularity="token", dynamic=True)
activations = arrays(np.float32, (2, 3, 8), elements=st.floats(-1e4, 1e4, width=32))


@given(activations, st.booleans())
def test_dynamic_scales_are_each_tokens_own(x, symmetric):
    args = TOKEN.model_copy(update={"symmetric": symmetric})
    together = numerics.fake_quantize(x, args)
    assert together.shape == x.shape
    for place in np.ndindex(2, 3):
        alone = numerics.fake_quantize(x[place][None, :], args)
        assert (together[place] == alone[0]).all()
        span = max(x[place].max(), 0) - min(x[place].min(), 0)
        step = 2 * np.abs(x[place]).max() / 255 if symmetric else span / 255
        assert np.abs(alone[0] - x[place]).max() <= step * 1.001 + 1e-30


def test_dynamic_groups_are_neighbours_of_one_token():
    args = QuantizationArgs(format="int8", granularity="group", group_size=4, dynamic=True)
    x = np.array([[1, 2, 3, 4, 100, 200, 300, 400]], np.float32)
    assert numerics.fake_quantize(x, args)[0, :4] == pytest.approx([1, 2, 3, 4], abs=4 / 127.5)


@given(activations)
def test_static_scales_are_as_given(x):
    args = QuantizationArgs(format="int8", granularity="tensor", symmetric=False)
    scale, zero_point = np.array([0.5], np.float32), np.array([10], np.float32)
    wanted = (np.clip(np.round(x / np.float32(0.5)) + 10, -128, 127) - 10) * np.float32(0.5)
    assert (numerics.fake_quantize(x, args, scale, zero_point) == wanted).all()


def test_static_activations_need_a_scale():
    with pytest.raises(ValueError, match="need a scale"):
        numerics.fake_quantize(np.ones((1, 2), np.float32), QuantizationArgs(format="int8", granularity="tensor"))


def test_the_dtype_stays():
    x = np.ones((2, 4), ml_dtypes.bfloat16)
    assert numerics.fake_quantize(x, TOKEN).dtype == x.dtype


@pytest.mark.parametrize("symmetric", [True, False])
def test_dynamic_scales_may_cover_less_than_the_range(symmetric):
    """What lies beyond is clipped; what lies within is finer by as much."""
    args = QuantizationArgs(format="int8", granularity="token", dynamic=True, symmetric=symmetric)
    x = np.linspace(-1, 1, 2001, dtype=np.float32)[None]
    seen = numerics.fake_quantize(x, args, keep=0.5)
    assert np.abs(seen).max() == pytest.approx(0.5, rel=0.01)
    inside = np.abs(x) < 0.49
    assert np.abs(seen - x)[inside].max() <= 0.501 * 2 * 0.5 / 255
