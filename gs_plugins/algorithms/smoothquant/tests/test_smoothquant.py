"""Equation 4 of the paper, at every fold of a block, and nothing of the float function lost."""

from types import SimpleNamespace

import numpy as np
import pytest

from gs_core import ChannelScale, Fold, Layer, QuantizationScheme
from gs_core.observers import ChannelMaxima
from gs_core.testing import HeldLayer, ToyAdapter, write_toy
from gs_schemas import SCHEMES, SchemaError, validate
from gs_smoothquant import Options, SmoothQuant

random = np.random.default_rng(0)
X = (random.standard_normal((100, 6)) * [1, 40, 0.1, 1, 2, 5]).astype(np.float32)
Q, K = (random.standard_normal((4, 6)).astype(np.float32) for _ in range(2))


def maxima(x: np.ndarray) -> np.ndarray:
    return np.abs(x).max(axis=0)


def smoothed(alpha: float, fold: Fold, layers: list[Layer], observed: dict[str, np.ndarray]) -> list[ChannelScale]:
    block = SimpleNamespace(folds=lambda: [fold])
    return SmoothQuant(Options(alpha=alpha)).smooth(block=block, layers=layers, observed=observed)


NORM = Fold("norm", ("site",), 6)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 0.8, 1.0])
def test_the_scale_is_equation_4_over_all_layers_of_the_site(alpha):
    (transform,) = smoothed(alpha, NORM, [HeldLayer(Q, name="q"), HeldLayer(K, name="k")], {"site": maxima(X)})
    for channel in range(6):
        activation = max(abs(float(x)) for x in X[:, channel])
        weight = max(abs(float(w)) for layer in (Q, K) for w in layer[:, channel])
        assert transform.scale[channel] == pytest.approx(activation**alpha / weight ** (1 - alpha), rel=1e-5)
    assert transform.fold is NORM


def test_alpha_one_makes_every_channel_of_the_activation_equally_wide():
    (transform,) = smoothed(1.0, NORM, [HeldLayer(Q, name="q")], {"site": maxima(X)})
    np.testing.assert_allclose(maxima(X / transform.scale), np.ones(6), rtol=1e-5)


def test_alpha_zero_makes_every_column_of_the_weight_equally_wide():
    (transform,) = smoothed(0.0, NORM, [HeldLayer(Q, name="q")], {"site": maxima(X)})
    np.testing.assert_allclose(maxima(Q * transform.scale), np.ones(6), rtol=1e-5)


def test_alpha_one_half_makes_activations_and_weights_equally_wide():
    (transform,) = smoothed(0.5, NORM, [HeldLayer(Q, name="q")], {"site": maxima(X)})
    np.testing.assert_allclose(maxima(X / transform.scale), maxima(Q * transform.scale), rtol=1e-5)


def test_channels_that_share_a_producers_channel_share_a_scale():
    """Grouped heads: two heads of o's input read one head of v, so the wider of the two decides."""
    index = np.array([0, 1, 0, 1, 2, 2])
    fold = Fold("v", ("site",), 3, index)
    (transform,) = smoothed(0.5, fold, [HeldLayer(Q, name="o")], {"site": maxima(X)})
    assert transform.scale.shape == (3,)
    for channel in range(3):
        members = index == channel
        expected = (maxima(X)[members].max() / maxima(Q)[members].max()) ** 0.5
        assert transform.scale[channel] == pytest.approx(expected, rel=1e-5)
    expanded = fold.expand(transform.scale)
    assert expanded[0] == expanded[2] and expanded[1] == expanded[3] and expanded[4] == expanded[5]


def test_sites_that_share_a_producer_share_its_scale():
    """A parallel block: attention and the feed-forward network read the same norm."""
    fold = Fold("norm", ("attention", "mlp"), 6)
    layers = [HeldLayer(Q, name="q", site="attention"), HeldLayer(K, name="up", site="mlp")]
    (transform,) = smoothed(0.5, fold, layers, {"attention": maxima(X), "mlp": maxima(3 * X)})
    np.testing.assert_allclose(transform.scale, (maxima(3 * X) / maxima(np.vstack([Q, K]))) ** 0.5, rtol=1e-5)


def test_a_channel_of_zeros_gets_a_finite_scale():
    dead, empty = X.copy(), Q.copy()
    dead[:, 0], empty[:, 1] = 0, 0
    for alpha in (0.0, 0.5, 1.0):
        (transform,) = smoothed(alpha, NORM, [HeldLayer(empty, name="q")], {"site": maxima(dead)})
        assert np.isfinite(transform.scale).all() and (transform.scale > 0).all()
        assert np.isfinite(1 / transform.scale).all()


def test_a_site_that_no_token_reached_is_left_alone():
    assert smoothed(0.5, NORM, [HeldLayer(Q, name="q")], {}) == []


# --- what it collects --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scheme", "listens"), [("W8A8", True), ("W8A8_STATIC", True), ("W4A16", False)])
def test_it_listens_only_where_activations_are_quantized(scheme, listens):
    assert (SmoothQuant().observe(site=None, scheme=SCHEMES[scheme]) is not None) == listens
    assert SmoothQuant().observe(site=None, scheme=QuantizationScheme()) is None


# --- a whole block -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_the_float_block_computes_what_it_did_and_its_inputs_are_tamer(tmp_path, alpha, dtype):
    """All four folds of the toy: both norms, the values, and up. Its norms make one channel in 32 ten times larger."""
    tokens = np.random.default_rng(1).integers(0, 256, (2, 64))
    block = ToyAdapter().open(write_toy(tmp_path / "toy", dtype=dtype), "cpu").block(0, (tokens, None))
    collected = {name: ChannelMaxima() for name in block.sites}
    before = block.run(tokens, None, lambda site, x: collected[site].update(x))["hidden"]
    observed = {name: maxima.result() for name, maxima in collected.items()}
    found = SmoothQuant(Options(alpha=alpha)).smooth(block=block, layers=list(block.layers.values()), observed=observed)
    assert [t.fold.producer.rpartition(".")[2] for t in found] == ["attention_norm", "v", "mlp_norm", "up"]
    for transform in found:
        block.apply(transform)

    again = {name: ChannelMaxima() for name in block.sites}
    after = block.run(tokens, None, lambda site, x: again[site].update(x))["hidden"]
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-5 * np.abs(before).max())
    for name in ("q", "gate"):
        spread = [
            x.max() / np.median(x)
            for x in (observed[f"blocks.0.{name}.input"], again[f"blocks.0.{name}.input"].result())
        ]
        assert spread[0] > 8
        assert alpha == 0 or spread[1] < 0.6 * spread[0]


# --- options -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [-0.1, 1.1, 5.0, float("nan")])
def test_alpha_out_of_range_is_an_error(alpha):
    with pytest.raises(SchemaError, match=f"smoothquant: alpha: got {alpha}"):
        validate(Options, {"alpha": alpha}, "smoothquant")


def test_a_misspelt_option_is_an_error():
    with pytest.raises(SchemaError, match=r"alhpa: no such field; fields: alpha, online\. Did you mean 'alpha'\?"):
        validate(Options, {"alhpa": 0.5}, "smoothquant")
