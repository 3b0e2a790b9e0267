"""``alpha: auto`` against running everything: each alpha, all tokens, all rows, by the formulas of the numbers."""

from types import SimpleNamespace

import numpy as np
import pytest

from gs_core import Fold, Layer, QuantizationScheme, numerics
from gs_core.testing import HeldLayer
from gs_schemas import SCHEMES, SchemaError, validate
from gs_smoothquant import Options, SmoothQuant
from gs_smoothquant.automatic import ALPHAS, on_grid

FEATURES = 24
NORM = Fold("norm", ("site",), FEATURES)


def chosen(alpha: float | str, x: np.ndarray, layers: list[Layer], scheme: QuantizationScheme) -> np.ndarray:
    """The scale that the plugin folds into the norm."""
    plugin = SmoothQuant(Options(alpha=alpha))
    accumulator = plugin.observe(site=None, scheme=scheme)
    for part in np.array_split(x, 3):
        accumulator.update(part)
    block = SimpleNamespace(folds=lambda: [NORM])
    (transform,) = plugin.smooth(block=block, layers=layers, observed={"site": accumulator.result()})
    return transform.scale


def error(
    scale: np.ndarray,
    x: np.ndarray,
    layers: list[Layer],
    scheme: QuantizationScheme,
    calibration: np.ndarray | None = None,
) -> float:
    """Squared error of all outputs, activations and weights quantized. calibration: tokens that a static scale is
    chosen on; ``x`` by default."""
    smooth = x / scale
    if scheme.inputs.dynamic:
        seen = numerics.fake_quantize(smooth, scheme.inputs)
    else:
        known = (x if calibration is None else calibration) / scale
        ends = np.array([known.min()]), np.array([known.max()])
        seen = numerics.fake_quantize(
            smooth, scheme.inputs, *numerics.scale_from_range(*ends, scheme.inputs, "float32")
        )
    total = 0.0
    for layer in layers:
        rounded = numerics.dequantize(numerics.quantize_weight(layer.weight() * scale, layer.args, "float32"))
        total += float(((seen @ rounded.T - x @ layer.weight().T).astype(np.float64) ** 2).sum())
    return total


def site(seed: int, spread: float, scheme: QuantizationScheme, tokens: int = 300) -> tuple[np.ndarray, list[Layer]]:
    """Activations with rare large values, whose channels differ in size by ``spread``, and two layers."""
    random = np.random.default_rng(seed)
    x = random.standard_t(3, (tokens, FEATURES)) * np.exp(spread * random.standard_normal(FEATURES))
    weights = [random.standard_normal((rows, FEATURES)).astype(np.float32) for rows in (16, 40)]
    return x.astype(np.float32), [HeldLayer(w, scheme, f"layer {i}") for i, w in enumerate(weights)]


@pytest.mark.parametrize("spread", [0.2, 1.0])
@pytest.mark.parametrize("seed", range(2))
def test_the_usual_alpha_stands_where_another_saves_less_than_a_quarter(spread, seed):
    """A scale per token follows rare large values."""
    scheme = SCHEMES["W8A8"]
    x, layers = site(seed, spread, scheme)
    every = [on_grid(chosen(alpha, x, layers, scheme)) for alpha in ALPHAS]
    half = chosen(0.5, x, layers, scheme)
    assert min(error(scale, x, layers, scheme) for scale in every) > 0.75 * error(half, x, layers, scheme)
    np.testing.assert_array_equal(chosen("auto", x, layers, scheme), half)


def test_a_static_scale_has_the_alpha_that_computes_well_on_other_tokens():
    """The alpha with the least error on the calibration tokens themselves lets no value of theirs be clipped, but
    clips values of other tokens."""
    scheme, ratios = SCHEMES["W8A8_STATIC"], []
    for seed in range(8):
        x, layers = site(seed, 1.0, scheme, tokens=6000)
        calibration, other = x[:3000], x[3000:]
        every = [on_grid(chosen(alpha, calibration, layers, scheme)) for alpha in ALPHAS]
        in_sample = min(every, key=lambda scale: error(scale, calibration, layers, scheme))
        auto = chosen("auto", calibration, layers, scheme)
        errors = [error(scale, other, layers, scheme, calibration) for scale in (auto, in_sample)]
        ratios.append(errors[0] / errors[1])
    print(ratios)
    assert np.exp(np.mean(np.log(ratios))) < 0.9


@pytest.mark.parametrize("scheme", ["W8A8", "W8A8_STATIC"])
def test_a_sample_of_many_tokens_picks_almost_as_well(scheme):
    scheme = SCHEMES[scheme]
    x, layers = site(0, 1.5, scheme)
    x = np.concatenate([x * size for size in np.linspace(0.5, 1.5, 20, dtype=np.float32)])
    best = min(error(chosen(alpha, x, layers, scheme), x, layers, scheme) for alpha in ALPHAS)
    assert error(chosen("auto", x, layers, scheme), x, layers, scheme) < 1.35 * best


def test_scales_lie_on_a_grid_of_powers():
    scale = np.exp(np.random.default_rng(0).uniform(-11, 8, 200)).astype(np.float32)
    steps = 64 * np.log2(on_grid(scale).astype(np.float64))
    np.testing.assert_allclose(steps, np.round(steps), atol=1e-4)
    np.testing.assert_allclose(on_grid(scale), scale, rtol=2 ** (1 / 128) - 1 + 1e-6)


def test_an_alpha_that_is_neither_a_number_nor_auto_is_an_error():
    with pytest.raises(SchemaError, match="smoothquant: alpha: got 'best'; give a number from 0 to 1, or auto"):
        validate(Options, {"alpha": "best"}, "smoothquant")
