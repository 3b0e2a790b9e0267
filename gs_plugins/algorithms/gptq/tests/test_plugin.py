"""The stage plugin: one Hessian for a site, every layer that shares it solved with it, every option honoured."""

import numpy as np
import pytest

from gs_core import Data, QuantizationArgs, QuantizationScheme, numerics
from gs_core.arrays import dtype_name
from gs_core.stages import unrecorded
from gs_core.testing import HeldLayer
from gs_gptq import GPTQ, Hessian, Options
from gs_schemas import SchemaError, validate

INT4 = QuantizationArgs(format="int4", granularity="group", group_size=16)
CHANNEL = QuantizationArgs(format="int4", granularity="channel")


@pytest.fixture
def x(correlated) -> np.ndarray:
    return correlated(seed=0, tokens=300, features=64, rank=40, outliers=2)


@pytest.fixture
def weight() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((24, 64)).astype(np.float32)


def same(left, right) -> bool:
    return np.array_equal(left.codes, right.codes) and np.array_equal(left.scale, right.scale)


# --- the Hessian -------------------------------------------------------------------------------------------------


def test_the_hessian_is_the_sum_of_the_outer_products_whatever_the_batches(x):
    whole, parts = Hessian(), Hessian()
    whole.update(x)
    for part in np.array_split(x, [7, 8, 200]):
        parts.update(part)
    expected = x.T.astype(np.float64) @ x
    for hessian in (whole, parts):
        np.testing.assert_allclose(hessian.result().take(), expected, rtol=1e-4, atol=1e-5 * expected.max())


def test_rescaling_is_as_if_every_activation_had_been_divided(x):
    scale = np.linspace(0.5, 4, 64, dtype=np.float32)
    rescaled, again = Hessian(), Hessian()
    rescaled.update(x)
    assert rescaled.rescale(scale)
    again.update(x / scale)
    np.testing.assert_allclose(rescaled.result().take(), again.result().take(), rtol=1e-4, atol=1e-4)


# --- layers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"static_groups": False}, {"act_order": False}])
def test_layers_that_share_a_site_get_the_codes_they_would_get_alone(x, options):
    def observed() -> dict[str, Hessian]:
        hessian = Hessian()
        hessian.update(x)
        return {"site": hessian.result()}

    # Stored in half the bits: products of other sizes may differ in the last bit of a float32.
    weights = {rows: np.random.default_rng(rows).standard_normal((rows, 64)).astype(np.float32) for rows in (24, 8, 16)}
    layers = [HeldLayer(weight, INT4, f"l{rows}", dtype="float16") for rows, weight in weights.items()]
    plugin = GPTQ(Options(**options))
    together = plugin.quantize(block=None, data=Data(), layers=layers, observed=observed(), record=unrecorded)
    assert list(together) == ["l24", "l8", "l16"]
    for layer in layers:
        alone = plugin.quantize(block=None, data=Data(), layers=[layer], observed=observed(), record=unrecorded)[
            layer.name
        ]
        assert same(together[layer.name], alone)


def test_layers_of_one_site_may_have_different_numbers(observed, weight, x):
    int8 = QuantizationArgs(format="int8", granularity="channel")
    layers = [
        HeldLayer(weight, INT4, "four"),
        HeldLayer(weight, int8, "eight"),
        HeldLayer(weight, INT4, "half", dtype="float16"),
    ]
    found = GPTQ().quantize(block=None, data=Data(), layers=layers, observed=observed(x), record=unrecorded)
    assert [found[n].args.bits for n in ("four", "eight", "half")] == [4, 8, 4]
    assert [dtype_name(found[n].scale) for n in ("four", "eight", "half")] == ["float32", "float32", "float16"]
    assert np.abs(found["eight"].codes.astype(int)).max() > 7


def test_a_layer_no_token_reached_is_rounded_to_nearest(weight):
    (found,) = (
        GPTQ()
        .quantize(block=None, data=Data(), layers=[HeldLayer(weight, INT4)], observed={}, record=unrecorded)
        .values()
    )
    assert same(found, numerics.quantize_weight(weight, INT4, "float32"))


def test_one_scale_for_the_whole_tensor_is_shared_by_all_rows_of_the_layer_alone(observed, x, output_error):
    """Two layers of one site must not end with one scale between them."""
    args = QuantizationArgs(format="int8", granularity="tensor")
    random = np.random.default_rng(3)
    small, large = (s * random.standard_normal((8, 64)).astype(np.float32) for s in (1, 100))
    layers = [HeldLayer(small, args, "small"), HeldLayer(large, args, "large")]
    found = GPTQ().quantize(block=None, data=Data(), layers=layers, observed=observed(x), record=unrecorded)
    assert found["small"].scale.shape == found["large"].scale.shape == (1, 1)
    assert output_error(small, found["small"], x) < 1e-3


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("args", [INT4, CHANNEL], ids=["group", "channel"])
@pytest.mark.parametrize("static_groups", [True, False])
def test_a_feature_that_is_always_zero_is_rounded_and_harms_no_other(
    quantized, weight, x, args, symmetric, static_groups
):
    args = args.model_copy(update={"symmetric": symmetric})
    dead = [0, 5, 16, 63]
    x[:, dead] = 0
    found = quantized(weight, x, args, static_groups=static_groups)
    values = numerics.dequantize(found)
    assert np.isfinite(values).all()
    step = np.repeat(found.scale, 64 // found.scale.shape[1], axis=1)
    if found.group_index is not None:
        step = found.scale[:, found.group_index]
    inside = np.abs(values - weight)[:, dead] <= np.abs(step)[:, dead] * 0.5001
    clipped = (found.codes == -8) | (found.codes == 7)
    assert (inside | clipped[:, dead]).all()


def test_features_that_are_always_zero_have_no_say_in_the_scales(quantized, weight, x, output_error):
    """However small the living activations are: what costs nothing must not outweigh them."""
    x = x * np.float32(0.01)
    x[:, ::8] = 0
    weight[:, ::8] *= 3
    weighed, ranged = (quantized(weight, x, INT4, observer=observer) for observer in ("hessian", "scheme"))
    assert output_error(weight, weighed, x) < 0.1 * output_error(weight, ranged, x)
    once = quantized(weight, x, INT4, sweeps=0)
    assert output_error(weight, weighed, x) < output_error(weight, once, x)


def test_a_singular_hessian_is_damped_until_it_can_be_used(quantized, weight, output_error, correlated):
    x = correlated(seed=4, tokens=3, features=64, rank=2)
    found = quantized(weight, np.repeat(x, 50, axis=0), INT4, damping=0.0)
    rounded = numerics.quantize_weight(weight, INT4, "float32")
    assert output_error(weight, found, x) < 0.1 * output_error(weight, rounded, x)


# --- options -----------------------------------------------------------------------------------------------------


def test_the_block_size_changes_nothing(quantized, weight, x):
    """Scales a little off, so that no value lies right between two codes."""
    args = INT4.model_copy(update={"observer": "mse"})
    expected = quantized(weight, x, args, observer="scheme")
    for size in (1, 10, 64):
        assert same(quantized(weight, x, args, observer="scheme", block_size=size), expected)


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("static_groups", [True, False])
@pytest.mark.parametrize("args", [INT4, CHANNEL], ids=["group", "channel"])
def test_a_group_index_comes_exactly_when_groups_are_no_neighbours(
    quantized, weight, x, act_order, static_groups, args
):
    found = quantized(weight, x, args, act_order=act_order, static_groups=static_groups)
    scattered = act_order and not static_groups and args.granularity == "group"
    assert (found.group_index is not None) == scattered
    assert (
        GPTQ(Options(act_order=act_order, static_groups=static_groups)).scatters(QuantizationScheme(weights=args))
        == scattered
    )
    if scattered:
        importance = np.argsort(-(x.astype(np.float64) ** 2).mean(0), kind="stable")
        np.testing.assert_array_equal(np.bincount(found.group_index), [16] * 4)
        np.testing.assert_array_equal(found.group_index[importance], np.arange(64) // 16)
        assert dtype_name(found.group_index) == "int32"


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("static_groups", [True, False])
def test_codes_are_computed_with_the_scales_that_are_stored(quantized, weight, x, dtype, static_groups, output_error):
    """Scales in the layer's dtype; dequantizing with them is no worse than what float32 scales give."""
    found = quantized(weight, x, INT4, dtype, static_groups=static_groups)
    assert dtype_name(found.scale) == dtype and dtype_name(found.codes) == "int8"
    exact = quantized(weight, x, INT4, static_groups=static_groups)
    assert output_error(weight, found, x) < 1.1 * output_error(weight, exact, x)


@pytest.mark.parametrize("static_groups", [True, False])
def test_a_scale_format_of_the_scheme_is_honoured(quantized, weight, x, static_groups):
    args = INT4.model_copy(update={"scale_format": "float32"})
    assert dtype_name(quantized(weight, x, args, "bfloat16", static_groups=static_groups).scale) == "float32"


@pytest.mark.parametrize("static_groups", [True, False])
def test_the_observer_of_the_scheme_is_honoured(quantized, weight, x, static_groups):
    """``mse`` clips, ``minmax`` does not: the scales differ, and the clipping ones are smaller."""
    clipping = INT4.model_copy(update={"observer": "mse"})
    narrow, wide = (
        quantized(weight, x, args, observer="scheme", static_groups=static_groups).scale for args in (clipping, INT4)
    )
    assert np.abs(narrow).mean() < 0.97 * np.abs(wide).mean()


def test_scales_are_positive_where_that_is_asked(quantized, weight, x):
    assert (quantized(weight, x, INT4).scale < 0).any()
    assert (quantized(weight, x, INT4, signed_scales=False).scale > 0).all()


@pytest.mark.parametrize("options", [{}, {"static_groups": False}, {"act_order": False}], ids=str)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_sweeps_lower_the_output_error_at_every_width(quantized, weight, x, output_error, bits, options):
    args = QuantizationArgs(format=f"int{bits}", granularity="group", group_size=16)
    errors = [output_error(weight, quantized(weight, x, args, sweeps=n, **options), x) for n in (0, 1, 4)]
    assert errors[2] < errors[1] < errors[0]


@pytest.mark.parametrize(("format", "usual"), [("int4", 1), ("int8", 0), ("fp8_e4m3", 1)])
def test_by_default_only_integers_of_eight_bits_are_not_swept(quantized, weight, x, format, usual):
    args = QuantizationArgs(format=format, granularity="channel")
    found = quantized(weight, x, args)
    assert same(found, quantized(weight, x, args, sweeps=usual))
    assert not same(found, quantized(weight, x, args, sweeps=1 - usual))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"damping": 1.5}, "damping: got 1.5"),
        ({"damping": -0.1}, "damping: got -0.1"),
        ({"block_size": 0}, "block_size: got 0"),
        ({"observer": "mse"}, "observer: got 'mse'"),
        ({"desc_act": True}, "desc_act: no such field; fields: act_order"),
    ],
)
def test_an_option_that_cannot_be_is_an_error_that_names_it(options, message):
    with pytest.raises(SchemaError) as error:
        validate(Options, options, "gptq")
    assert str(error.value).startswith(f"gptq: {message}")


def test_scales_by_block_are_refused_while_planning(weight):
    args = QuantizationArgs(format="int8", granularity="block", block_size=(8, 8))
    refusal = GPTQ().unsupported(HeldLayer(weight, args).info, QuantizationScheme(weights=args))
    assert refusal and "use granularity channel or group, or rtn" in refusal
