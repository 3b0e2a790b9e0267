"""The clip search against trying everything on the activations themselves."""

import numpy as np
import pytest

from gs_awq import AWQ, Options
from gs_core import Fold, QuantizationArgs, numerics
from gs_core.testing import HeldLayer
from gs_schemas import SchemaError, validate

GROUP = QuantizationArgs(format="int4", granularity="group", group_size=16)
CHANNEL = QuantizationArgs(format="int4")
ROWS, FEATURES = 12, 64
RATIOS = tuple(1 - i / 20 for i in range(10))


@pytest.fixture
def weight() -> np.ndarray:
    return np.random.default_rng(0).standard_t(5, (ROWS, FEATURES)).astype(np.float32)


@pytest.fixture
def x(correlated) -> np.ndarray:
    return correlated(0, tokens=200, features=FEATURES, rank=12, outliers=1)


def clipped(weight: np.ndarray, args: QuantizationArgs, ratio: np.ndarray | float) -> np.ndarray:
    """Rounded to nearest with each range clipped to a part of it, ``(rows, groups)``."""
    low, high = numerics.minmax(numerics.split(weight, args))
    parameters = numerics.scale_from_range(low * ratio, high * ratio, args, "float32")
    return numerics.dequantize(numerics.quantize_with(weight, *parameters, args))


def row_errors(weight: np.ndarray, values: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Squared error of each output over all activations, float64 ``(rows,)``."""
    return ((x.astype(np.float64) @ (values.astype(np.float64) - weight).T) ** 2).sum(axis=0)


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
def test_each_row_is_clipped_by_the_ratio_that_costs_the_least(quantized, weight, x, symmetric):
    args = CHANNEL.model_copy(update={"symmetric": symmetric})
    found = row_errors(weight, numerics.dequantize(quantized(weight, x, args, weight_clip_ratio=RATIOS)), x)
    every = np.array([row_errors(weight, clipped(weight, args, np.float32(ratio)), x) for ratio in RATIOS])
    assert len(set(every.argmin(axis=0))) > 2  # rows differ in what is best for them
    np.testing.assert_allclose(found, every.min(axis=0), rtol=1e-4)


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
def test_no_group_alone_could_do_better(quantized, weight, x, symmetric):
    """Swept until it stands: the next ratio up or down for one group, all the others as they are, is no better."""
    args = GROUP.model_copy(update={"symmetric": symmetric})
    found = quantized(weight, x, args, weight_clip_ratio=RATIOS, sweeps=20)
    values = numerics.dequantize(found)
    least = row_errors(weight, values, x)
    ratio = found.scale / numerics.weight_params(weight, args, "float32")[0]
    chosen = np.abs(ratio[:, :, None] - np.array(RATIOS)).argmin(axis=-1)
    assert len(np.unique(chosen)) > 4
    for step in (-1, 1):
        other = clipped(weight, args, np.array(RATIOS, np.float32)[np.clip(chosen + step, 0, 9)])
        for group in range(FEATURES // 16):
            columns = slice(16 * group, 16 * (group + 1))
            mixed = values.copy()
            mixed[:, columns] = other[:, columns]
            assert (row_errors(weight, mixed, x) >= 0.9999 * least).all()


def test_a_scale_may_be_negative_where_the_wider_side_is_positive(quantized, weight, x, output_error):
    """Codes reach from -8 to 7: the sign decides which side gets the eighth step."""
    signed, plain = (quantized(weight, x, GROUP, signed_scales=signed) for signed in (True, False))
    groups = weight.reshape(ROWS, -1, 16)
    np.testing.assert_array_equal(signed.scale < 0, groups.max(axis=-1) > -groups.min(axis=-1))
    assert (plain.scale > 0).all()
    assert output_error(weight, signed, x) < 0.95 * output_error(weight, plain, x)
    eight = quantized(weight, x, GROUP.model_copy(update={"format": "int8"}), signed_scales=True)
    assert (eight.scale > 0).all()


@pytest.mark.parametrize("args", [GROUP, CHANNEL, QuantizationArgs(format="int4", granularity="block",
                         block_size=(4, 16)), QuantizationArgs(format="int4", granularity="tensor")],
                         ids=["group", "channel", "block", "tensor"])  # fmt: skip
def test_the_more_it_sweeps_the_less_it_costs(quantized, weight, x, output_error, args):
    """And never more than without clipping."""
    plain = output_error(weight, clipped(weight, args, 1.0), x)
    once, twice, often = (output_error(weight, quantized(weight, x, args, sweeps=n), x) for n in (1, 2, 6))
    assert once < plain and twice <= 1.0001 * once and often <= 1.0001 * twice


def test_groups_make_up_for_each_other(quantized, weight, x):
    """Each group by itself, as the paper has it, costs more than all of a row together."""
    alone = np.concatenate(
        [
            numerics.dequantize(quantized(weight[:, a : a + 16], x[:, a : a + 16], CHANNEL, weight_clip_ratio=RATIOS))
            for a in range(0, FEATURES, 16)
        ],
        axis=1,
    )
    together = numerics.dequantize(quantized(weight, x, GROUP, weight_clip_ratio=RATIOS, sweeps=2))
    assert row_errors(weight, together, x).sum() < 0.95 * row_errors(weight, alone, x).sum()


@pytest.mark.parametrize(
    ("granularity", "rounding", "limit"), [("group", 9.7e-3, 2.93e-3), ("channel", 1.49e-2, 5.7e-3)]
)
def test_a_layer_that_golden_stick_was_measured_on(
    scaled, quantized, correlated, output_error, granularity, rounding, limit
):
    """512 → 256, correlated inputs, six outlier channels: the errors of rounding, and of Golden Stick 1.4.1's AWQ."""
    args = QuantizationArgs(format="int4", granularity=granularity, group_size=64 if granularity == "group" else None)
    x = correlated(seed=0, tokens=512, features=512, rank=56, outliers=6)
    weight = (0.05 * np.random.default_rng(0).standard_normal((256, 512))).astype(np.float32)
    plain = output_error(weight, numerics.quantize_weight(weight, args, "float32"), x)
    assert plain == pytest.approx(rounding, rel=0.2)  # the layer is as hard as that one
    scale = scaled(Fold("norm", ("site",), 512), [HeldLayer(weight, args)], {"site": x})
    found = quantized(weight * scale, x / scale, args)
    assert output_error(weight, numerics.dequantize(found) / scale, x) < limit * min(1, plain / rounding)


def test_by_few_tokens_it_errs_less_on_other_tokens_when_their_correlations_are_shrunk(
    quantized, correlated, output_error
):
    features, few = 128, 64
    weight = np.random.default_rng(0).standard_t(5, (48, features)).astype(np.float32)
    x = correlated(1, tokens=2000, features=features, rank=96)
    auto, exact, given = (
        numerics.dequantize(quantized(weight, x[:few], GROUP, shrinkage=shrinkage))
        for shrinkage in ("auto", 0.0, features / (features + few))
    )
    np.testing.assert_array_equal(auto, given)
    assert output_error(weight, exact, x[:few]) < output_error(weight, auto, x[:few])
    assert output_error(weight, auto, x[few:]) < 0.97 * output_error(weight, exact, x[few:])


def test_moments_shrunk_wholly_count_each_feature_alone(quantized, weight, x):
    found = numerics.dequantize(quantized(weight, x, CHANNEL, weight_clip_ratio=RATIOS, shrinkage=1.0))
    importance = (x.astype(np.float64) ** 2).sum(axis=0)

    def cost(values: np.ndarray) -> np.ndarray:
        return ((values - weight) ** 2 * importance).sum(axis=1)

    every = np.array([cost(clipped(weight, CHANNEL, np.float32(ratio))) for ratio in RATIOS])
    np.testing.assert_allclose(cost(found), every.min(axis=0), rtol=1e-4)


# --- options -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"smooth_alpha": 1.5}, "smooth_alpha"),
        ({"smooth_alpha": []}, "smooth_alpha"),
        ({"weight_clip_ratio": 0.0}, "weight_clip_ratio"),
        ({"weight_clip_ratio": [0.5, 1.5]}, "weight_clip_ratio"),
        ({"sweeps": 0}, "sweeps: got 0"),
        ({"shrinkage": 1.5}, "shrinkage"),
        ({"bogus": 1}, "bogus: no such field"),
    ],
)
def test_an_option_that_cannot_be_is_an_error_that_names_it(options, message):
    with pytest.raises(SchemaError, match=message):
        validate(Options, options, "awq")


def test_a_number_is_a_list_of_one():
    assert Options(smooth_alpha=0.5, weight_clip_ratio=1).smooth_alpha == (0.5,)
    assert Options(weight_clip_ratio=1).weight_clip_ratio == (1.0,)


def test_a_layer_that_no_token_reached_is_rounded_to_nearest(weight):
    found = AWQ().quantize(layers=[HeldLayer(weight, GROUP)], observed={})["layer"]
    expected = numerics.quantize_weight(weight, GROUP, "float32")
    np.testing.assert_array_equal(found.codes, expected.codes)
    np.testing.assert_array_equal(found.scale, expected.scale)
