"""Asymmetric calibration: what the target is, which layers make up for the whole block, and that it helps."""

from collections.abc import Mapping

import numpy as np
import pytest

from gs_core import Data, QuantizationArgs, QuantizationScheme, numerics
from gs_core.arrays import to_raw
from gs_core.stages import unrecorded
from gs_core.testing import ToyAdapter, write_toy
from gs_gptq import GPTQ, Hessian, Options, factor
from gs_gptq.asymmetric import Arrivals, Prefix

INT3 = QuantizationArgs(format="int3", granularity="group", group_size=32)
SCHEME = QuantizationScheme(weights=INT3)


@pytest.fixture
def block(tmp_path):
    """The second block of the toy, with the layers to be quantized."""
    block = ToyAdapter().open(write_toy(tmp_path / "toy", dtype="float32"), "cpu").block(1, (None, None))
    for layer in block.layers.values():
        layer.scheme = SCHEME
    return block


@pytest.fixture
def data(block):
    """What reaches it behind a block that was quantized badly, and what it returns where nothing was."""
    random = np.random.default_rng(0)
    tokens = [np.zeros((4, 32), np.int64)] * 4
    hidden = [random.standard_normal((4, 32, 128)).astype(np.float32) for _ in tokens]
    mixing = np.eye(128, dtype=np.float32) + 0.03 * random.standard_normal((128, 128)).astype(np.float32)
    floats = [(t, {"hidden": to_raw(x)}) for t, x in zip(tokens, hidden, strict=True)]
    batches = [(t, {"hidden": to_raw(x @ mixing)}) for t, x in zip(tokens, hidden, strict=True)]
    targets = [{"hidden": to_raw(block.run(*batch)["hidden"])} for batch in floats]
    return Data(batches, floats, targets, [4] * 4)


def quantized(block, data, **options) -> Mapping[str, np.ndarray]:
    plugin = GPTQ(Options(**options))
    observed = {}
    if not plugin.options.asymmetric:
        hessians = {site.name: plugin.observe(site=site) for site in block.sites.values() if site.layers}
        for batch in data.batches:
            block.run(*batch, lambda name, x: hessians[name].update(x) if name in hessians else None)
        observed = {name: hessian.result() for name, hessian in hessians.items()}
    found = plugin.quantize(
        block=block, layers=list(block.layers.values()), observed=observed, data=data, record=unrecorded
    )
    return {name: numerics.dequantize(tensor) for name, tensor in found.items()}


def error(block, data, weights) -> float:
    """Of what the block returns with these weights, relative to what the float block does, each token alike."""
    total = 0.0
    for batch, target in zip(data.batches, data.targets, strict=True):
        wanted = np.frombuffer(target["hidden"].data, np.float32).reshape(-1, 128)
        got = block.run(*batch, None, weights)["hidden"].reshape(-1, 128)
        total += float((((got - wanted) ** 2).sum(-1) / (wanted**2).sum(-1)).mean())
    return total


# --- the arithmetic ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("features", [5, 256, 300])
def test_the_factors_solve_the_damped_system(features, correlated, median):
    x = correlated(seed=1, tokens=2 * features, features=features, rank=features // 2).astype(np.float64)
    hessian = x.T @ x
    damped = hessian + 0.01 * median(np.diag(hessian)) * np.eye(features)
    y = np.random.default_rng(0).standard_normal((features, 3))
    found = factor(hessian.copy(), 0.01).solve(y)
    np.testing.assert_allclose(found, np.linalg.solve(damped, y), rtol=1e-7, atol=1e-9 * np.abs(found).max())


def test_the_target_is_the_least_squares_weight_for_what_arrives_now(correlated):
    """Of all weights, the one that makes of x what W makes of x'."""
    random = np.random.default_rng(2)
    x = correlated(seed=3, tokens=400, features=24, rank=12).astype(np.float64)
    before = x @ (np.eye(24) + 0.1 * random.standard_normal((24, 24))) + 0.05 * random.standard_normal(x.shape)
    weight = random.standard_normal((8, 24))
    arrivals = Arrivals(Hessian(), shift=(before - x).T @ x)
    arrivals.hessian.update(x)
    found = arrivals.target(weight, factor(arrivals.hessian.take(), 0.0).solve)
    expected = np.linalg.lstsq(x, before @ weight.T, rcond=None)[0].T
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-8)


def test_where_nothing_is_missing_the_target_is_the_weight():
    weight = np.ones((2, 3), np.float32)
    assert Arrivals().target(weight, lambda y: y) is weight


# --- the order of the work ---------------------------------------------------------------------------------------


def test_sites_are_taken_in_the_order_of_execution_and_those_of_experts_together(block, data):
    names = [[name.rpartition(".")[2] for site in step.values() for name in (n.name for n in site)]
             for step in Prefix(block, data).steps(list(block.layers.values()))]  # fmt: skip
    assert names == [["q", "k", "v"], ["o"], ["gate", "up"], ["down"]]


def test_a_layer_that_writes_to_what_the_block_returns_is_found(block, data):
    steps = Prefix(block, data).steps(list(block.layers.values()))
    arrivals = [next(iter(Prefix(block, data).arrivals(step).values())) for step in steps]
    assert [a.lack is not None for a in arrivals] == [False, False, False, True]
    assert [a.shift is not None for a in arrivals] == [True, True, True, False]


def test_a_site_is_seen_anew_when_those_before_it_are_quantized(block, data):
    prefix = Prefix(block, data)
    first, second = prefix.steps(list(block.layers.values()))[:2]
    before = next(iter(prefix.arrivals(second).values())).hessian.take()
    for layer in next(iter(first.values())):
        prefix.quantized(layer, numerics.quantize_weight(layer.weight(), INT3, "float32"))
    after = next(iter(prefix.arrivals(second).values())).hessian.take()
    prefix.close()
    assert not np.allclose(before, after, rtol=1e-3)
    again = next(iter(Prefix(block, data).arrivals(second).values())).hessian.take()
    np.testing.assert_array_equal(before, again)


def test_what_arrives_is_what_an_engine_sees(block, data):
    """Rounded activations are what the weights have to work with."""
    step = Prefix(block, data).steps(list(block.layers.values()))[0]
    coarse = Data(data.batches, data.floats, data.targets, data.sizes, as_seen=lambda name, x: np.round(x))
    hessian = next(iter(Prefix(block, coarse).arrivals(step).values())).hessian.take()
    np.testing.assert_array_equal(hessian, np.round(hessian))


# --- what comes of it --------------------------------------------------------------------------------------------


def test_a_block_makes_up_for_the_one_before(block, data):
    own = {name: layer.weight() for name, layer in block.layers.items()}
    alone, together = (error(block, data, quantized(block, data, asymmetric=on)) for on in (False, True))
    assert together < 0.6 * alone
    assert together < error(block, data, own), "better than the float block, which makes up for nothing"


def test_the_block_has_its_own_weights_afterwards(block, data):
    before = {name: layer.weight() for name, layer in block.layers.items()}
    quantized(block, data, asymmetric=True)
    for name, layer in block.layers.items():
        np.testing.assert_array_equal(layer.weight(), before[name])


def test_it_asks_for_the_float_stream_only_then():
    assert GPTQ(Options(asymmetric=True)).needs(SCHEME).float_stream
    assert not GPTQ().needs(SCHEME).float_stream
    assert GPTQ(Options(asymmetric=True)).observe(site=None) is None
