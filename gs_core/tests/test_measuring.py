"""A sample of a site, and what it tells of a layer, against doing everything."""

import numpy as np
import pytest

from gs_core import numerics
from gs_core.measuring import ROWS, TOKENS, HeldOutWatcher, Measured, Watcher
from gs_core.testing import HeldLayer
from gs_schemas import SCHEMES

random = np.random.default_rng(0)
X = (random.standard_normal((300, 24)) * np.exp(random.standard_normal(24)) + random.standard_normal(24) * 3).astype(
    np.float32
)


def watched(x: np.ndarray, batches: int = 1) -> Watcher:
    watcher = Watcher()
    for part in np.array_split(x, batches):
        watcher.update(part)
    return watcher


@pytest.mark.parametrize("batches", [1, 7, 300])
def test_as_many_tokens_are_kept_whatever_the_batches_are(batches):
    x = np.arange(5 * TOKENS + 7, dtype=np.float32)[:, None] - 100
    seen, whole = watched(x, batches).result(), watched(x).result()
    assert np.array_equal(seen.tokens, whole.tokens) and len(seen.tokens) == TOKENS
    assert seen.low == -100 and seen.high == x.max() and seen.maxima == x.max()


def test_what_was_seen_scales_with_the_channels():
    scale = np.linspace(0.5, 4, 24, dtype=np.float32)
    watcher = watched(X)
    assert watcher.rescale(scale)
    got, wanted = watcher.result(), watched(X / scale).result()
    for part in ("tokens", "low", "high"):
        np.testing.assert_allclose(getattr(got, part), getattr(wanted, part), rtol=1e-6)


def test_held_out_tokens_take_no_part_in_the_ends():
    x = np.arange(1, 4001, dtype=np.float32)[:, None]
    watcher = HeldOutWatcher()
    for part in np.array_split(x, 4):
        watcher.update(part)
    assert watcher.rescale(np.array([2.0], np.float32))
    seen = watcher.result()
    assert (seen.low, seen.high) == (0.5, 2000)
    held_out = seen.held_out
    assert 400 < len(held_out.tokens) < 600, "an eighth of 4000"
    others = np.setdiff1d(x / 2, held_out.tokens)
    assert (held_out.low, held_out.high) == (others.min(), others.max())
    assert not np.intersect1d(held_out.tokens, held_out.range_tokens).size


def test_without_tokens_to_hold_out_all_tokens_are_used():
    watcher = HeldOutWatcher()
    watcher.update(np.ones((1, 3), np.float32))
    seen = watcher.result()
    assert seen.held_out is seen


@pytest.mark.parametrize("shifted", [False, True], ids=["scale", "shift and scale"])
@pytest.mark.parametrize("scheme", ["W8A8", "W8A8_STATIC", "W4A16"])
def test_the_error_is_that_of_the_layer_computed_as_an_engine_does(scheme, shifted):
    scheme = SCHEMES[scheme]
    if scheme.weights.group_size:
        scheme = scheme.model_copy(update={"weights": scheme.weights.model_copy(update={"group_size": 8})})
    weight, bias = random.standard_normal((40, 24)).astype(np.float32), random.standard_normal(40)
    scale = np.exp(random.standard_normal(24)).astype(np.float32)
    shift = X.mean(axis=0) if shifted else None
    arrived = (X - (0 if shift is None else shift)) / scale
    if scheme.inputs is not None:
        static = ()
        if not scheme.inputs.dynamic:
            ends = np.array([arrived.min()]), np.array([arrived.max()])
            static = numerics.scale_from_range(*ends, scheme.inputs, "float32")
        arrived = numerics.fake_quantize(arrived, scheme.inputs, *static)
    layer = HeldLayer(weight, scheme)
    rounded = numerics.dequantize(numerics.quantize_weight(weight * scale, layer.args, "float32"))
    output = arrived @ rounded.T + bias + (0 if shift is None else weight @ shift)
    wanted = ((output - (X @ weight.T + bias)) ** 2).sum(axis=1).mean()
    assert Measured.of([layer], watched(X, 3).result(), shift).error(scale) == pytest.approx(wanted, rel=1e-3)


def test_errors_of_layers_that_share_a_site_add_up():
    seen, scale = watched(X).result(), np.exp(random.standard_normal(24)).astype(np.float32)
    layers = [
        HeldLayer(random.standard_normal((rows, 24)).astype(np.float32), SCHEMES[scheme])
        for rows, scheme in ((16, "W8A8"), (40, "W8A8_STATIC"), (24, "W8A8"))
    ]
    alone = sum(Measured.of([layer], seen).error(scale) for layer in layers)
    assert Measured.of(layers, seen).error(scale) == pytest.approx(alone)


@pytest.mark.parametrize("large", [0, 3], ids=["alike", "few rows have most of the error"])
def test_some_rows_of_a_large_layer_tell_the_error_of_all(large):
    seen, scale = watched(X).result(), np.exp(0.3 * random.standard_normal(24)).astype(np.float32)
    weight = random.standard_normal((16 * ROWS, 24)).astype(np.float32)
    weight[5 : 5 + large] *= 100
    every = [HeldLayer(weight[start::16], SCHEMES["W8A8"]) for start in range(16)]
    whole = Measured.of([HeldLayer(weight, SCHEMES["W8A8"])], seen)
    assert ROWS <= whole.parts[0].weight.shape[0] < 2 * ROWS
    assert whole.error(scale) == pytest.approx(Measured.of(every, seen).error(scale), rel=0.1)
