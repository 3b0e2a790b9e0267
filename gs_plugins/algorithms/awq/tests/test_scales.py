"""The scale search against the direct one: every candidate run over all activations, nothing remembered of them."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

import gs_awq.scales
from gs_awq import Moments
from gs_awq.scales import STEP, Target, candidates
from gs_core import Fold, Layer, QuantizationArgs, numerics
from gs_core.testing import HeldLayer

INT4 = QuantizationArgs(format="int4", granularity="group", group_size=32)
SCHEMES = {
    "group": INT4,
    "group asym": INT4.model_copy(update={"symmetric": False}),
    "channel": QuantizationArgs(format="int4"),
    "int3": INT4.model_copy(update={"format": "int3"}),
    "block": QuantizationArgs(format="int4", granularity="block", block_size=(8, 32)),
}
ALPHAS = tuple(i / 20 for i in range(20))
FEATURES = 64
NORM = Fold("norm", ("site",), FEATURES)


def weight(seed: int, rows: int = 40) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, FEATURES)).astype(np.float32)


def formula(fold: Fold, layers: Sequence[Layer], x: Mapping[str, np.ndarray], alpha: float, duo: bool) -> np.ndarray:
    """The paper's scale, with the weights' share as the authors' code has it, ``(channels,)``."""

    def relative(magnitudes: list[np.ndarray]) -> np.ndarray:
        widest = np.array(magnitudes).max(axis=0)
        if fold.index is not None:
            widest = np.array([widest[fold.index == channel].max() for channel in range(fold.channels)])
        return widest / widest.mean()

    activation = relative([np.abs(x[site].astype(np.float64)).mean(axis=0) for site in fold.sites])
    shares = []
    for layer in layers:
        groups = numerics.split(np.abs(layer.weight()), layer.args)
        groups = groups / groups.max(axis=-1, keepdims=True)
        shares.append(numerics.join(groups, layer.shape, layer.args).mean(axis=0))
    scale = activation**alpha / (relative(shares) ** (1 - alpha) if duo else 1)
    return scale / np.sqrt(scale.max() * scale.min())


def observing(x: np.ndarray) -> Moments:
    moments = Moments()
    for half in np.array_split(x, 2):
        moments.update(half)
    return moments


def ran(scale: np.ndarray, layers: Sequence[Layer], x: Mapping[str, np.ndarray]) -> float:
    """What all outputs are off by, in float64, after rounding the scaled weights ``(features,)`` to nearest."""
    total = 0.0
    for layer in layers:
        scaled = layer.weight() * scale.astype(np.float32)
        values = numerics.dequantize(numerics.quantize_weight(scaled, layer.args, "float32")).astype(np.float64)
        inputs = x[layer.site].astype(np.float64)
        total += float((((inputs / scale) @ values.T - inputs @ layer.weight().T.astype(np.float64)) ** 2).sum())
    return total


def direct(
    fold: Fold, layers: Sequence[Layer], x: Mapping[str, np.ndarray], duo: bool, alphas: Sequence[float] = ALPHAS
) -> tuple[np.ndarray, list[float]]:
    """The best candidate, and what each costs. They are the plugin's own: the last bit of a scale decides where weights
    go that lie between two codes."""
    targets = [Target.of(layer, seen, seen.matrix, False) for layer in layers for seen in [observing(x[layer.site])]]
    tried = candidates(fold, targets, alphas, duo)
    for alpha, scale in zip(alphas, tried[1:], strict=True):
        np.testing.assert_allclose(scale, formula(fold, layers, x, alpha, duo), rtol=1e-5, atol=STEP)
    costs = [ran(fold.expand(scale), layers, x) for scale in tried]
    return tried[int(np.argmin(costs))], costs


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("duo", [True, False], ids=["duo", "plain"])
@pytest.mark.parametrize("args", SCHEMES.values(), ids=SCHEMES)
def test_it_picks_what_the_direct_search_picks(scaled, correlated, args, duo, seed):
    x = {"site": correlated(seed, tokens=200, features=FEATURES, rank=12, outliers=2)}
    layers = [HeldLayer(weight(seed), args, "q"), HeldLayer(0.1 * weight(seed + 10, 24), args, "k")]
    expected, costs = direct(NORM, layers, x, duo)
    assert len({round(cost, 6) for cost in costs}) > 10  # there is something to choose from
    found = scaled(NORM, layers, x, duo_scaling=duo, weight_clip_ratio=1.0)
    np.testing.assert_array_equal(found, expected)


def test_channels_that_share_a_producers_channel_share_a_scale(scaled, correlated):
    """Grouped heads: each of v's channels reaches two of o's inputs."""
    fold = Fold("v", ("site",), FEATURES // 2, np.arange(FEATURES) % (FEATURES // 2))
    x = {"site": correlated(0, tokens=200, features=FEATURES, rank=12, outliers=2)}
    layers = [HeldLayer(weight(0), INT4)]
    expected, _ = direct(fold, layers, x, True)
    np.testing.assert_array_equal(scaled(fold, layers, x, weight_clip_ratio=1.0), expected)


def test_sites_that_share_a_producer_share_its_scale(scaled, correlated):
    """A parallel block: attention and the feed-forward network read the same norm."""
    fold = Fold("norm", ("attention", "mlp"), FEATURES)
    x = {site: correlated(seed, 200, FEATURES, 12, 2) for seed, site in enumerate(fold.sites)}
    layers = [HeldLayer(weight(0), INT4, "q", "attention"), HeldLayer(weight(1), INT4, "up", "mlp")]
    expected, _ = direct(fold, layers, x, True)
    np.testing.assert_array_equal(scaled(fold, layers, x, weight_clip_ratio=1.0), expected)


@pytest.mark.parametrize("alpha", [0.0, 0.35, 1.0])
@pytest.mark.parametrize("duo", [True, False], ids=["duo", "plain"])
def test_a_single_alpha_is_taken_unless_no_scale_is_better(scaled, correlated, alpha, duo):
    x = {"site": correlated(0, tokens=200, features=FEATURES, rank=12, outliers=2)}
    layers = [HeldLayer(weight(0), INT4)]
    expected, _ = direct(NORM, layers, x, duo, [alpha])
    found = scaled(NORM, layers, x, smooth_alpha=alpha, duo_scaling=duo, weight_clip_ratio=1.0)
    np.testing.assert_array_equal(found, expected)


def test_scaling_the_few_channels_with_large_activations_saves_most_of_the_error(scaled, correlated):
    """Section 3.1 of the paper: one channel in a hundred decides; and 3.2: scaled up, its error is divided."""
    x = {"site": correlated(1, tokens=400, features=FEATURES, rank=40, outliers=1)}
    layers = [HeldLayer(weight(1), INT4)]
    scale = scaled(NORM, layers, x, duo_scaling=False, weight_clip_ratio=1.0)
    salient = int(np.abs(x["site"]).mean(axis=0).argmax())
    assert int(scale.argmax()) == salient and scale[salient] > 2 * np.sort(scale)[-2]
    assert ran(scale, layers, x) < 0.7 * ran(np.ones(FEATURES), layers, x)


@pytest.mark.parametrize("args", [INT4, SCHEMES["channel"]], ids=["group", "channel"])
def test_a_search_by_sample_costs_hardly_more_than_the_best(scaled, correlated, args, monkeypatch):
    """Of large layers it looks at some rows, and runs the exact comparison on the most promising candidates."""
    monkeypatch.setattr(gs_awq.scales, "SAMPLE", 512 * FEATURES)
    monkeypatch.setattr(gs_awq.scales, "PRODUCTS", 1)
    for seed in range(3):
        x = {"site": correlated(seed, tokens=200, features=FEATURES, rank=12, outliers=2)}
        layers = [HeldLayer(weight(seed, 2048), args, "up"), HeldLayer(weight(seed + 10, 1024), args, "gate")]
        _, costs = direct(NORM, layers, x, True)
        found = scaled(NORM, layers, x, weight_clip_ratio=1.0)
        assert ran(found, layers, x) < 1.02 * min(costs)


def test_dead_channels_and_a_site_of_zeros_get_finite_scales(scaled, correlated):
    x = correlated(0, tokens=100, features=FEATURES, rank=12)
    x[:, :5] = 0
    for inputs in (x, np.zeros_like(x)):
        found = scaled(NORM, [HeldLayer(weight(0), INT4)], {"site": inputs})
        assert np.isfinite(found).all() and np.isfinite(1 / found).all() and (found > 0).all()
