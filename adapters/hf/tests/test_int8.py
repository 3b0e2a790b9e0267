"""Products in int8, where what is observed will lose as much: what they lose, and where they are made."""

import numpy as np
import pytest
import torch

from gs_hf import int8
from gs_hf.int8 import Int8, Rounded
from gs_schemas import SCHEMES

FAMILIES = ["llama", "qwen2", "opt", "gpt_neox"]
native = pytest.mark.skipif(not int8.fast("cpu"), reason="this processor has no fast products of int8")


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


def multiply(products: Int8, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return products.product("site", products.inputs("site", x, {"weight": weight}), "weight")


@pytest.fixture
def many() -> np.ndarray:
    """Token ids, int64 ``(8, 64)``: enough of them to be worth rounding a weight."""
    return np.random.default_rng(0).integers(3, 96, (8, 64))


@pytest.fixture
def block(saved, opened, many):
    """``(family, scheme)``: the first block of such a model, all its layers of one scheme."""

    def make(family: str, scheme: str, **changes):
        block = opened(saved(family, **changes)).block(0, (many, None))
        for layer in block.layers.values():
            layer.scheme = SCHEMES[scheme]
        return block

    return make


@pytest.fixture
def hidden(many):
    """``(block, replaced={}, exact=False, observing=True)``: what a block returns; ``replaced``: by site."""

    def run(block, replaced=None, exact=False, observing=True):
        with block.computing(exact, observing):
            return block.run(many, None, lambda site, x: (replaced or {}).get(site))["hidden"]

    return run


# --- numbers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_a_row_is_rounded_to_the_nearest_of_255_equal_steps(seed, size):
    x, factor = normal(70, 32, seed=seed) * size, normal(32, seed=seed + 1).abs() + 0.1
    codes, steps = Rounded.of(x, factor)
    assert codes.abs().amax(1).tolist() == [127] * 70
    assert (((codes * steps) - x * factor).abs() <= steps * 0.5001).all()


def test_a_row_of_zeros_stays_one():
    rounded = Rounded.of(torch.zeros(3, 8), torch.ones(8))
    assert not (rounded.codes * rounded.steps).any()


@native
def test_sums_of_codes_are_exact():
    """Also where every code is the largest there is, which instructions of 16 bits could not add."""
    for a, b in [(normal(70, 512), normal(40, 512, seed=1)), (torch.ones(70, 512), -torch.ones(40, 512))]:
        one, other = (Rounded.of(t, torch.ones(512)) for t in (a, b))
        exact = (one.codes.double() @ other.codes.double().T) * one.steps.double() * other.steps.double().T
        assert error(one.times(other), exact) < 1e-6


@native
def test_a_channel_of_huge_activations_does_not_drown_the_others():
    """It would: without smoothing, a step is then as large as most other activations."""
    x, weight = normal(300, 64), normal(48, 64, seed=1)
    x[:, 5] *= 1000
    exact, others = x @ weight.T, x.clone()
    others[:, 5] = 0
    found = multiply(Int8(), x, weight)
    plain = Rounded.of(x, torch.ones(64)).times(Rounded.of(weight, torch.ones(64)))
    scale = (others @ weight.T).norm()
    assert (plain - exact).norm() / scale > 1
    assert (found - exact).norm() / scale < 0.2


@native
def test_a_channel_that_slept_in_the_first_batch_may_wake():
    x, weight = normal(300, 64), normal(48, 64, seed=1)
    asleep = x.clone()
    asleep[:, 5] = 0
    products = Int8()
    multiply(products, asleep, weight)
    assert error(multiply(products, x, weight), x @ weight.T) < 0.2


@native
def test_a_weight_is_rounded_again_once_something_was_written_into_it():
    x, weight = normal(300, 64), normal(48, 64, seed=1)
    products = Int8()
    first = multiply(products, x, weight)
    assert torch.equal(multiply(products, x, weight), first)
    weight[3:5] *= -1
    found = multiply(products, x, weight)
    assert torch.equal(found[:, 3:5], -first[:, 3:5])
    assert torch.equal(found[:, 5:], first[:, 5:])


@native
def test_what_was_smoothed_since_is_not_smoothed_twice():
    """A scale that a huge channel left in a weight would drown the rest of it, were it multiplied by another."""
    x, weight = normal(300, 64), normal(48, 64, seed=1)
    x[:, 5] *= 1000
    products = Int8()
    multiply(products, x, weight)
    x[:, 5] /= 1000
    weight[:, 5] *= 1000
    assert torch.equal(multiply(products, x, weight), multiply(Int8(), x, weight))


# --- blocks ----------------------------------------------------------------------------------------------------


@native
@pytest.mark.parametrize("scheme", ["W8A8", "W4A16", "W2A16", "W4A4"])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_will_be_served_in_int8_or_of_fewer_bits_is_observed_so(block, hidden, family, scheme):
    """Biases and all that lies between products are as they were."""
    made = block(family, scheme)
    exact = hidden(made, observing=False)
    assert 0 < error(hidden(made), exact) < 0.03


@native
@pytest.mark.parametrize("family", ["llama", "opt"])
def test_each_site_is_heard_once_and_in_float(block, many, family):
    made, seen = block(family, "W8A8"), []
    with made.computing(exact=False, observing=True):
        made.run(many, None, lambda site, x: seen.append((site, x.dtype)))
    with made.computing(exact=True):
        expected = []
        made.run(many, None, lambda site, x: expected.append((site, x.dtype)))
    assert seen == expected
    assert all(dtype == torch.float32 for _, dtype in seen)


@pytest.mark.parametrize("scheme", ["W8A16", "W8A16_KV8"])
def test_other_schemes_are_observed_in_float(block, hidden, scheme):
    made = block("llama", scheme)
    assert torch.equal(hidden(made), hidden(made, observing=False))


def test_layers_that_share_an_input_are_all_multiplied_so_or_none(block, hidden):
    made = block("llama", "W8A8")
    for site in made.sites.values():
        for name in site.layers[:1]:
            made.layers[name].scheme = SCHEMES["W8A16"]
    assert torch.equal(hidden(made), hidden(made, observing=False))


@pytest.mark.parametrize("given", [{"exact": True}, {"observing": False}])
def test_nothing_is_where_products_have_to_be_exact(block, hidden, given):
    made = block("llama", "W8A8")
    plain = block("llama", "W8A16")
    assert torch.equal(hidden(made, **given), hidden(plain, exact=True, observing=False))


def test_nothing_is_where_the_processor_has_no_such_products(block, hidden, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    made = block("llama", "W8A8")
    assert torch.equal(hidden(made), hidden(made, observing=False))


def test_nothing_is_rounded_for_few_tokens(block, tokens):
    made = block("llama", "W8A8")
    with made.computing(exact=False, observing=True):
        found = made.run(tokens, None, lambda site, x: None)["hidden"]
    assert torch.equal(found, made.run(tokens, None)["hidden"])


def test_what_stands_in_for_an_activation_is_multiplied_as_it_is(block, hidden, many):
    """It was rounded already, as the engine will, and another rounding would come on top."""
    made, arrived = block("llama", "W8A8"), {}
    with made.computing(exact=True):
        made.run(many, None, lambda site, x: arrived.__setitem__(site, x.clone()))
    assert torch.equal(hidden(made, arrived), hidden(made, arrived, observing=False))
