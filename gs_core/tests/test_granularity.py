"""What shares a scale, against loops over every element."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gs_core import numerics
from gs_core.numerics import groups
from gs_core.testing.suite import INPUTS, WEIGHTS
from gs_schemas import QuantizationArgs

WEIGHT = np.random.default_rng(0).standard_normal((6, 12)).astype(np.float32)
GRANULARITIES = {
    "tensor": {"granularity": "tensor"},
    "channel": {"granularity": "channel"},
    "group": {"granularity": "group", "group_size": 4},
    "block": {"granularity": "block", "block_size": (2, 3)},
}
each_granularity = pytest.mark.parametrize("sharing", GRANULARITIES.values(), ids=GRANULARITIES)


def members(sharing, shape):
    """The elements that share each scale: ``{(row, column) of the scale: [(row, column), ...]}``."""
    height, width = {
        "tensor": shape,
        "channel": (1, shape[1]),
        "group": (1, sharing.get("group_size")),
        "block": sharing.get("block_size"),
    }[sharing["granularity"]]
    found = {}
    for row in range(shape[0]):
        for column in range(shape[1]):
            found.setdefault((row // height, column // width), []).append((row, column))
    return found


@each_granularity
@pytest.mark.parametrize("symmetric", [True, False])
def test_every_granularity_is_what_loops_say(sharing, symmetric):
    args = QuantizationArgs(format="int4", symmetric=symmetric, **sharing)
    tensor = numerics.quantize_weight(WEIGHT, args, "float32")
    dequantized = numerics.dequantize(tensor)
    for place, elements in members(sharing, WEIGHT.shape).items():
        values = [WEIGHT[element] for element in elements]
        if symmetric:
            scale, zero = max(abs(value) for value in values) * np.float32(2 / 15), np.float32(0)
        else:
            low, high = min(*values, np.float32(0)), max(*values, np.float32(0))
            scale = (high - low) * np.float32(1 / 15)
            zero = -8 - np.round(low / scale)
            assert tensor.zero_point[place] == zero
        assert tensor.scale[place] == scale
        for element in elements:
            code = min(max(np.round(WEIGHT[element] / scale) + zero, -8), 7)
            assert tensor.codes[element] == code
            assert dequantized[element] == (code - zero) * scale


@each_granularity
def test_join_takes_back_what_split_did(sharing):
    args = QuantizationArgs(format="int8", **sharing)
    parts = numerics.split(WEIGHT, args)
    elements = members(sharing, WEIGHT.shape)
    assert parts.shape[:2] == tuple(np.max(list(elements), axis=0) + 1)
    for place, group in elements.items():
        assert parts[place].tolist() == [WEIGHT[element] for element in group]
    assert (numerics.join(parts, WEIGHT.shape, args) == WEIGHT).all()


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 300))
def test_an_objection_is_raised_exactly_where_a_split_would_fail(rows, columns, size):
    for sharing in ({"granularity": "group", "group_size": size}, {"granularity": "block", "block_size": (size, 2)}):
        args = QuantizationArgs(format="int8", **sharing)
        if numerics.objection((rows, columns), args) is None:
            assert numerics.split(np.empty((rows, columns), np.float32), args).size == rows * columns
        else:
            with pytest.raises(ValueError, match="does not divide"):
                numerics.split(np.empty((rows, columns), np.float32), args)


def test_an_objection_names_both_numbers():
    objection = numerics.objection((64, 96), QuantizationArgs(format="int4", granularity="group", group_size=128))
    assert objection == "group_size 128 does not divide in_features 96"
    tile = numerics.objection((64, 96), QuantizationArgs(format="int4", granularity="block", block_size=(128, 32)))
    assert tile == "block_size (128, 32) does not divide the shape (64, 96)"


@pytest.mark.parametrize("args", WEIGHTS.values(), ids=WEIGHTS)
def test_working_on_a_few_rows_at_a_time_changes_nothing(args, monkeypatch):
    weight = np.random.default_rng(0).standard_normal((64, 96)).astype(np.float32)
    whole = numerics.quantize_weight(weight, args, "bfloat16")
    wanted = numerics.dequantize(whole)
    monkeypatch.setattr(groups, "SLICE", 500)
    assert len(list(groups.slices(weight))) == 13
    sliced = numerics.quantize_weight(weight, args, "bfloat16")
    for part in ("codes", "scale", "zero_point"):
        assert np.array_equal(getattr(sliced, part), getattr(whole, part)), part
    assert np.array_equal(numerics.dequantize(sliced), wanted)


@pytest.mark.parametrize("args", INPUTS.values(), ids=INPUTS)
def test_working_on_a_few_tokens_at_a_time_changes_nothing(args, monkeypatch):
    x = np.random.default_rng(0).standard_normal((5, 13, 96)).astype(np.float32)
    params = () if args.dynamic else (np.array([0.02], np.float32), None if args.symmetric else np.array([3.0]))
    whole = numerics.fake_quantize(x, args, *params)
    monkeypatch.setattr(groups, "SLICE", 500)
    assert np.array_equal(numerics.fake_quantize(x, args, *params), whole)
