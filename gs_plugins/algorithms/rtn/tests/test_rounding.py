"""Every weight goes to the code nearest to it: compared with trying all codes, one weight at a time."""

import numpy as np
import pytest

from gs_core import QuantizationArgs, numerics
from gs_core.arrays import astype, dtype_name
from gs_core.testing import HeldLayer
from gs_rtn import RoundToNearest

ROWS, COLUMNS = 8, 24
GRANULARITIES = {
    "tensor": {"granularity": "tensor"},
    "channel": {"granularity": "channel"},
    "group": {"granularity": "group", "group_size": 8},
    "block": {"granularity": "block", "block_size": (4, 6)},
}


def shared_scale(row: int, column: int, args: QuantizationArgs) -> tuple[int, int]:
    """Which entry of the scales an element belongs to."""
    match args.granularity:
        case "tensor":
            return 0, 0
        case "channel":
            return row, 0
        case "group":
            return row, column // args.group_size
        case "block":
            return row // args.block_size[0], column // args.block_size[1]


@pytest.fixture
def weight() -> np.ndarray:
    weight = np.random.default_rng(0).standard_normal((ROWS, COLUMNS)).astype(np.float32)
    weight[2, 3], weight[5] = 6, 0  # something to clip for, and a row with no range
    return weight


def rounded(weight, args, dtype="float32"):
    return RoundToNearest().quantize(layers=[HeldLayer(weight, args, dtype=dtype)])["layer"]


@pytest.mark.parametrize("observer", ["minmax", "mse"])
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("number", ["int3", "int4", "int8"])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_each_code_is_the_nearest_of_all_codes(weight, granularity, number, symmetric, observer):
    args = QuantizationArgs(format=number, symmetric=symmetric, observer=observer, **GRANULARITIES[granularity])
    found = rounded(weight, args)
    codes = np.arange(args.number.minimum, args.number.maximum + 1)
    values = numerics.dequantize(found)
    for row in range(ROWS):
        for column in range(COLUMNS):
            at = shared_scale(row, column, args)
            scale = float(found.scale[at])
            zero_point = 0 if symmetric else float(found.zero_point[at])
            value = (float(found.codes[row, column]) - zero_point) * scale
            assert values[row, column] == pytest.approx(value, rel=1e-6)
            best = np.abs((codes - zero_point) * scale - weight[row, column]).min()
            assert abs(value - weight[row, column]) <= best + 1e-6


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
def test_minmax_scales_reach_the_widest_value_of_what_shares_them(weight, granularity, symmetric):
    """And no further: a symmetric scale is the widest magnitude over 7.5 steps, an asymmetric one the range over 15."""
    args = QuantizationArgs(format="int4", symmetric=symmetric, **GRANULARITIES[granularity])
    found = rounded(weight, args)
    together: dict[tuple[int, int], list[float]] = {}
    for row in range(ROWS):
        for column in range(COLUMNS):
            together.setdefault(shared_scale(row, column, args), []).append(float(weight[row, column]))
    for at, values in together.items():
        low, high = min(0.0, *values), max(0.0, *values)
        expected = max(-low, high) / 7.5 if symmetric else (high - low) / 15
        assert found.scale[at] == pytest.approx(expected or 1.0, rel=1e-6)


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_mse_scales_cost_less_than_minmax_scales(weight, granularity):
    def error(observer: str) -> float:
        args = QuantizationArgs(format="int4", observer=observer, **GRANULARITIES[granularity])
        return float(((numerics.dequantize(rounded(weight, args)) - weight) ** 2).sum())

    assert error("mse") < error("minmax")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_scales_are_stored_in_the_layers_dtype_and_codes_computed_with_what_is_stored(weight, dtype):
    args = QuantizationArgs(format="int8")
    found = rounded(weight, args, dtype)
    assert dtype_name(found.scale) == dtype and dtype_name(found.codes) == "int8"
    stored = astype(found.scale, "float32")
    np.testing.assert_array_equal(found.codes, np.clip(np.round(weight / stored), -128, 127))


def test_every_layer_is_answered_under_its_name(weight):
    args = QuantizationArgs(format="int8")
    layers = [HeldLayer(weight, args, "one"), HeldLayer(2 * weight, args, "two")]
    found = RoundToNearest().quantize(layers=layers)
    assert list(found) == ["one", "two"]
    np.testing.assert_array_equal(found["one"].codes, found["two"].codes)
    np.testing.assert_allclose(2 * found["one"].scale[:5], found["two"].scale[:5], rtol=1e-6)


def test_it_needs_no_data():
    """A recipe of ``rtn`` alone never runs the model."""
    assert not hasattr(RoundToNearest, "observe") and not hasattr(RoundToNearest, "smooth")
