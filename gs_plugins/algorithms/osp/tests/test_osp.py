"""What the paper says of shifts and scales, and the search against trying everything."""

from types import SimpleNamespace

import numpy as np
import pytest

from gs_core import ChannelScale, Fold, QuantizationScheme, numerics
from gs_core.testing import HeldLayer
from gs_osp import OutlierSuppressionPlus
from gs_schemas import SCHEMES

STATIC, DYNAMIC = SCHEMES["W8A8_STATIC"], SCHEMES["W8A8"]
FEATURES = 24
BOTH = Fold("norm", ("input",), FEATURES, shifts=True)
SCALE = Fold("norm", ("input",), FEATURES)
random = np.random.default_rng(0)


def activations(tokens: int = 300) -> np.ndarray:
    """Three channels that stand out, two of them off centre: the paper finds such in OPT-66B."""
    x = random.standard_normal((tokens, FEATURES))
    x[:, 3] = random.uniform(-97, -58, tokens)
    x[:, 8] = random.uniform(5.7, 43, tokens)
    x[:, 17] *= 4
    return x.astype(np.float32)


X = activations()
LAYERS = [random.standard_normal((rows, FEATURES)).astype(np.float32) for rows in (16, 40)]


def found(fold: Fold, scheme: QuantizationScheme, x: dict[str, np.ndarray] | None = None) -> ChannelScale:
    """What the plugin does at a fold."""
    plugin, observed = OutlierSuppressionPlus(), {}
    for site, values in (x or {"input": X}).items():
        accumulator = plugin.observe(site=None, scheme=scheme)
        for part in np.array_split(values, 3):
            accumulator.update(part)
        observed[site] = accumulator.result()
    layers = [HeldLayer(w, scheme, f"{site} {i}", site) for site in fold.sites for i, w in enumerate(LAYERS)]
    (transform,) = plugin.smooth(block=SimpleNamespace(folds=lambda: [fold]), layers=layers, observed=observed)
    assert transform.fold is fold
    return transform


def error(transform: ChannelScale, scheme: QuantizationScheme) -> float:
    """Squared error of all outputs, activations and weights quantized; biases make up for the shift."""
    shift = np.zeros(FEATURES, np.float32) if transform.shift is None else transform.shift
    arrived = (X - shift) / transform.scale
    ends = np.array([arrived.min()]), np.array([arrived.max()])
    static = () if scheme.inputs.dynamic else numerics.scale_from_range(*ends, scheme.inputs, "float32")
    arrived = numerics.fake_quantize(arrived, scheme.inputs, *static)
    total = 0.0
    for weight in LAYERS:
        rounded = numerics.dequantize(numerics.quantize_weight(weight * transform.scale, scheme.weights, "float32"))
        output = arrived.astype(np.float64) @ rounded.T + weight @ shift
        total += float(((output - X.astype(np.float64) @ weight.T) ** 2).sum())
    return total


# --- the shift ---------------------------------------------------------------------------------------------------


def test_the_shift_is_the_middle_of_each_channel():
    """``z = (max + min) / 2``."""
    np.testing.assert_allclose(found(BOTH, STATIC).shift, (X.max(axis=0) + X.min(axis=0)) / 2, rtol=1e-6)


def test_shifted_channels_are_symmetric_and_the_range_of_all_shrinks():
    """Channels from -97 to -58 and from 5.7 to 43 span 140 together, and 39 once they are centred."""
    centred = X - found(BOTH, STATIC).shift
    np.testing.assert_allclose(centred.max(axis=0), -centred.min(axis=0), rtol=1e-4, atol=1e-5)
    assert np.ptp(X) == pytest.approx(140, abs=2) and np.ptp(centred) == pytest.approx(39, abs=1)


def test_without_biases_there_is_no_shift():
    assert found(SCALE, STATIC).shift is None


# --- the scale ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fold", [BOTH, SCALE], ids=["shift and scale", "scale"])
@pytest.mark.parametrize("scheme", [STATIC, DYNAMIC], ids=["static", "dynamic"])
def test_only_channels_beyond_the_threshold_are_scaled_and_they_all_come_down_to_it(fold, scheme):
    """``s = max(1, max|x - z| / t)``."""
    transform = found(fold, scheme)
    magnitude = np.abs(X - (0 if transform.shift is None else transform.shift)).max(axis=0)
    left = magnitude / transform.scale
    scaled = transform.scale > 1
    assert 0 < scaled.sum() < FEATURES and scaled[3] and scaled[8]
    np.testing.assert_allclose(left[scaled], left[scaled].max(), rtol=1e-5)
    assert magnitude[~scaled].max() <= left[scaled].max() * 1.00001


@pytest.mark.parametrize("fold", [BOTH, SCALE], ids=["shift and scale", "scale"])
@pytest.mark.parametrize("scheme", [STATIC, DYNAMIC], ids=["static", "dynamic"])
def test_no_other_threshold_computes_better(fold, scheme):
    """Those that the search looks at, and four times as many."""
    transform = found(fold, scheme)
    magnitude = np.abs(X - (0 if transform.shift is None else transform.shift)).max(axis=0)
    every = [
        ChannelScale(fold, np.maximum(1, magnitude / (magnitude.max() * 1024 ** (-i / 240))), transform.shift)
        for i in range(241)
    ]
    errors = [error(other, scheme) for other in every]
    assert errors[0] > 2 * min(errors)  # not to scale at all
    assert error(transform, scheme) <= 1.001 * min(errors[::4])
    assert error(transform, scheme) <= 1.1 * min(errors)


def test_a_shift_makes_static_quantization_better_still():
    assert error(found(BOTH, STATIC), STATIC) < 0.8 * error(found(SCALE, STATIC), STATIC)


def test_channels_that_share_a_producers_channel_share_shift_and_scale():
    index = np.arange(FEATURES) % (FEATURES // 2)
    transform = found(Fold("v", ("input",), FEATURES // 2, index, shifts=True), STATIC)
    low, high = (end(axis=0).reshape(2, -1) for end in (X.min, X.max))
    np.testing.assert_allclose(transform.shift, (low.min(axis=0) + high.max(axis=0)) / 2, rtol=1e-6)
    assert transform.scale.shape == (FEATURES // 2,)


def test_sites_that_share_a_producer_share_shift_and_scale():
    fold = Fold("norm", ("attention", "mlp"), FEATURES, shifts=True)
    transform = found(fold, STATIC, {"attention": X, "mlp": X[:100] + 2})
    low, high = np.minimum(X.min(axis=0), X[:100].min(axis=0) + 2), np.maximum(X.max(axis=0), X[:100].max(axis=0) + 2)
    np.testing.assert_allclose(transform.shift, (low + high) / 2, rtol=1e-5, atol=1e-6)


def test_a_site_of_zeros_is_left_as_it_is():
    transform = found(BOTH, STATIC, {"input": np.zeros_like(X)})
    assert (transform.scale == 1).all() and not transform.shift.any()


@pytest.mark.parametrize(("scheme", "listens"), [("W8A8", True), ("W8A8_STATIC", True), ("W4A16", False)])
def test_it_listens_only_where_activations_are_quantized(scheme, listens):
    assert (OutlierSuppressionPlus().observe(site=None, scheme=SCHEMES[scheme]) is not None) == listens
