"""Integer formats: from a range to a scale, from numbers to codes and back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from gs_core import numerics
from gs_core.arrays import astype, dtype_name
from gs_schemas import QuantizationArgs

FORMATS = [f"int{bits}" for bits in range(2, 9)]
finite = st.floats(-1e4, 1e4, width=32)
weights = arrays(np.float32, array_shapes(min_dims=2, max_dims=2, max_side=12), elements=finite)
formats = st.sampled_from(FORMATS + [f"u{name}" for name in FORMATS])


def args(format="int4", symmetric=True, granularity="channel", **more):
    return QuantizationArgs(format=format, granularity=granularity, symmetric=symmetric, **more)


def column(*values):
    return np.array(values, np.float32)[:, None]


@given(weights, formats, st.booleans(), st.sampled_from(["float32", "bfloat16", "float16"]))
def test_inside_the_range_the_error_is_at_most_half_a_step(weight, format, symmetric, dtype):
    numbers = args(format, symmetric=symmetric and not format.startswith("u"))
    tensor = numerics.quantize_weight(weight, numbers, dtype)
    scale = astype(tensor.scale, "float32").astype(np.float64)
    zero = 0 if tensor.zero_point is None else tensor.zero_point.astype(np.float64)
    low, high = ((code - zero) * scale for code in (numbers.number.minimum, numbers.number.maximum))
    error = np.abs(numerics.dequantize(tensor) - weight)
    slack = 1e-6 * np.abs(weight) + 1e-30
    assert (error <= np.where((low <= weight) & (weight <= high), scale / 2, np.inf) + slack).all()
    outside = np.maximum(low - weight, weight - high)
    assert (error <= np.maximum(outside, scale / 2) + slack).all(), "what does not fit goes to the nearest end"


@pytest.mark.parametrize(("format", "half"), [("int2", 1.5), ("int3", 3.5), ("int4", 7.5), ("int8", 127.5)])
def test_a_symmetric_scale_spreads_the_widest_magnitude_over_half_the_codes(format, half):
    scale, zero_point = numerics.scale_from_range(column(-half, -1), column(1, half), args(format), "float32")
    assert scale.tolist() == [[1.0], [1.0]]
    assert zero_point is None


def test_the_largest_positive_value_of_a_symmetric_range_saturates():
    tensor = numerics.quantize_weight(np.array([[7.5, -7.5, 3.4, 0]], np.float32), args("int4"), "float32")
    assert tensor.codes.tolist() == [[7, -8, 3, 0]]


@pytest.mark.parametrize(
    ("format", "low", "high", "scale", "zero_point"),
    [("int4", -5, 10, 1, -3), ("uint4", -5, 10, 1, 5), ("int8", 0, 255, 1, -128), ("uint8", -255, 0, 1, 255)],
)
def test_an_asymmetric_range_is_covered_from_end_to_end(format, low, high, scale, zero_point):
    found = numerics.scale_from_range(column(low), column(high), args(format, symmetric=False), "float32")
    assert [float(x[0, 0]) for x in found] == [scale, zero_point]


@pytest.mark.parametrize(("low", "high", "step"), [(3, 15, 1), (-15, -3, 1)])
def test_an_asymmetric_range_is_made_to_contain_zero(low, high, step):
    scale, _ = numerics.scale_from_range(column(low), column(high), args(symmetric=False), "float32")
    assert scale[0, 0] == step


@given(weights, formats)
def test_zero_is_always_exact(weight, format):
    weight[:, 0] = 0
    for symmetric in {False, not format.startswith("u")}:
        tensor = numerics.quantize_weight(weight, args(format, symmetric=symmetric), "bfloat16")
        assert (numerics.dequantize(tensor)[:, 0] == 0).all()


@given(weights, formats, st.sampled_from(["float32", "bfloat16", "float16"]))
def test_the_scale_has_the_dtype_it_is_stored_in(weight, format, dtype):
    tensor = numerics.quantize_weight(weight, args(format, symmetric=False), dtype)
    assert dtype_name(tensor.scale) == dtype
    assert dtype_name(tensor.codes) == dtype_name(tensor.zero_point) == ("uint8" if format[0] == "u" else "int8")


def test_codes_are_computed_with_the_scale_as_it_is_stored():
    """bfloat16 rounds a scale of 1.002 to 1: 100.6 is then nearer to 101 steps than to 100."""
    weight = np.array([[127.5 * 1.002, 100.6]], np.float32)
    assert numerics.quantize_weight(weight, args("int8"), "bfloat16").codes.tolist() == [[127, 101]]
    assert numerics.quantize_weight(weight, args("int8"), "float32").codes.tolist() == [[127, 100]]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-30, 1e-8])
def test_no_scale_is_rounded_away(dtype, value):
    tensor = numerics.quantize_weight(np.full((2, 4), value, np.float32), args("int8"), dtype)
    assert (tensor.scale > 0).all()
    assert np.isfinite(astype(tensor.scale, "float32")).all()
    assert np.isfinite(numerics.dequantize(tensor)).all()


def test_a_named_scale_format_wins_over_the_models():
    assert numerics.scale_dtype(args(), "bfloat16") == "bfloat16"
    assert numerics.scale_dtype(args(scale_format="float16"), "bfloat16") == "float16"


def test_rounding_is_half_to_even():
    codes = numerics.encode(np.array([0.5, 1.5, 2.5, -0.5, -1.5], np.float32), 1.0, None, args("int8"))
    assert codes.tolist() == [0, 2, 2, 0, -2]


@given(weights)
def test_an_index_says_which_group_a_feature_is_in(weight):
    """Features in another order, with an index, stand for the same weight in that order."""
    weight = np.tile(weight, 2)
    size = weight.shape[1] // 2
    tensor = numerics.quantize_weight(weight, args(granularity="group", group_size=size, symmetric=False), "float32")
    order = np.random.default_rng(0).permutation(weight.shape[1])
    index = (order // size).astype(np.int32)
    moved = type(tensor)(tensor.codes[:, order], tensor.scale, tensor.zero_point, tensor.args, index)
    assert (numerics.dequantize(moved) == numerics.dequantize(tensor)[:, order]).all()
