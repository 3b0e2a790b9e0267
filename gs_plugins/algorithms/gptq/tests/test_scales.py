"""Narrow symmetric scales may be negative, for the one code that has no opposite."""

import numpy as np
import pytest

from gs_core import QuantizationArgs, numerics
from gs_gptq.scales import weight_params


def args(bits: int, observer: str = "mse") -> QuantizationArgs:
    return QuantizationArgs(format=f"int{bits}", granularity="group", group_size=32, observer=observer)


@pytest.fixture
def weight() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((64, 128)).astype(np.float32)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_scale_is_negative_where_the_largest_magnitude_is_positive(weight, bits):
    scale, zero_point = weight_params(weight, args(bits), "float32", None)
    groups = weight.reshape(64, 4, 32)
    np.testing.assert_array_equal(scale < 0, groups.max(-1) > -groups.min(-1))
    assert zero_point is None


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_turning_a_weight_over_turns_its_scales_and_leaves_its_codes(weight, bits):
    (scale, _), (turned, _) = (weight_params(w, args(bits), "float32", None) for w in (weight, -weight))
    np.testing.assert_array_equal(turned, -scale)
    codes = numerics.quantize_with(weight, scale, None, args(bits)).codes
    np.testing.assert_array_equal(codes, numerics.quantize_with(-weight, turned, None, args(bits)).codes)
    assert codes.min() == -(2 ** (bits - 1))


@pytest.mark.parametrize(("bits", "most"), [(2, 0.9), (3, 0.9), (4, 0.95)])
def test_the_step_that_is_won_lowers_the_error(weight, bits, most):
    def error(scale: np.ndarray) -> float:
        return float(
            ((weight - numerics.dequantize(numerics.quantize_with(weight, scale, None, args(bits)))) ** 2).sum()
        )

    signed, unsigned = (f(weight, args(bits), "float32", None)[0] for f in (weight_params, numerics.weight_params))
    assert error(signed) < most * error(unsigned)


@pytest.mark.parametrize(
    "other",
    [
        QuantizationArgs(format="int8", granularity="channel"),
        QuantizationArgs(format="int4", granularity="tensor"),
        QuantizationArgs(format="int4", granularity="group", group_size=32, symmetric=False),
        QuantizationArgs(format="uint4", granularity="group", group_size=32, symmetric=False),
    ],
    ids=lambda args: f"{args.format}-{args.granularity}",
)
def test_other_numbers_keep_the_scales_of_the_core(weight, other):
    for found, expected in zip(
        weight_params(weight, other, "float16", None), numerics.weight_params(weight, other, "float16"), strict=True
    ):
        np.testing.assert_array_equal(found, expected)
