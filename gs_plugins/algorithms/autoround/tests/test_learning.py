"""Learning finds what trying every rounding finds, keeps the best, and can be repeated."""

import itertools
from dataclasses import replace

import pytest
import torch

from gs_autoround import AutoRound, Options
from gs_autoround.learning import Reconstruction, learn
from gs_autoround.rounding import Rounding
from gs_core import Needs, QuantizationArgs, QuantizationScheme, numerics
from gs_core.guidance import Distance
from gs_schemas import SCHEMES, SchemaError, validate

INT4 = QuantizationArgs(format="int4", granularity="channel")
FEATURES = 8


@pytest.fixture
def inputs():
    """Batches ``(4, 16, FEATURES)`` whose features are strongly correlated: roundings must be chosen together."""
    random = torch.Generator().manual_seed(0)
    mix = torch.randn(2, FEATURES, generator=random)
    return [
        torch.randn(4, 16, 2, generator=random) @ mix + 0.1 * torch.randn(4, 16, FEATURES, generator=random)
        for _ in range(4)
    ]


@pytest.fixture
def weight():
    return torch.randn(3, FEATURES, generator=torch.Generator().manual_seed(1))


def learned(block, data, steps, seed=(0,), bfloat16=False):
    reconstruction = Reconstruction(block, [Rounding(block.layers["layer"], None)], data, bfloat16)
    tensors, losses = learn(reconstruction, steps, 4, 1 / steps, seed)
    return tensors["layer"], losses


def error(weight, found, inputs):
    return float(sum(((x @ (found - weight).T) ** 2).sum(-1).div(((x @ weight.T) ** 2).sum(-1)).mean() for x in inputs))


def test_it_comes_close_to_the_best_of_all_roundings(one_product, weight, inputs):
    """One row: 2⁸ ways to round under the scales it starts from. Nearest is far from the best of them."""
    row = weight[:1]
    block, data = one_product(row, INT4, inputs)
    start = Rounding(block.layers["layer"], None)
    floor = torch.floor(row / start.scale)
    tried = [
        ((floor + torch.tensor(up)).clamp(-8, 7) * start.scale) for up in itertools.product((0.0, 1.0), repeat=FEATURES)
    ]
    best = min(error(row, w, inputs) for w in tried)
    nearest = error(row, start.weight.detach(), inputs)
    found = error(row, numerics.dequantize(learned(block, data, 200)[0]), inputs)
    assert best < 0.3 * nearest
    assert found < best + 0.2 * (nearest - best)


def test_the_best_that_was_seen_is_kept(one_product, weight, inputs):
    """Steps as large as this only do harm."""
    block, data = one_product(weight, INT4, inputs[:1])
    start = Rounding(block.layers["layer"], None)
    reconstruction = Reconstruction(block, [Rounding(block.layers["layer"], None)], data, False)
    tensors, _ = learn(reconstruction, 3, 4, 50.0, (0,))
    assert torch.equal(tensors["layer"].codes, start.tensor().codes)
    assert torch.equal(tensors["layer"].scale, start.tensor().scale)


def test_a_seed_decides_everything(one_product, weight, inputs):
    block, data = one_product(weight, INT4, inputs)
    (one, losses), (same, again) = (learned(block, data, 20) for _ in range(2))
    assert torch.equal(one.codes, same.codes)
    assert torch.equal(one.scale, same.scale)
    assert losses == again
    assert losses != learned(block, data, 20, (1,))[1]


def test_what_means_nothing_to_the_predictions_is_left_alone(one_product, weight, inputs):
    """Of three outputs only the first means anything."""
    block, data = one_product(weight, INT4, inputs)
    start = Rounding(block.layers["layer"], None).tensor()
    distance = Distance(torch.ones(3), torch.diag(torch.tensor([1.0, 0.0, 0.0])))
    reconstruction = Reconstruction(block, [Rounding(block.layers["layer"], None)], data, False, distance)
    found = learn(reconstruction, 100, 4, 1 / 100, (0,))[0]["layer"]
    assert torch.equal(found.codes[1:], start.codes[1:])
    assert torch.equal(found.scale[1:], start.scale[1:])
    assert not torch.equal(found.codes[0], start.codes[0])


def test_quantized_activations_are_learned_through(one_product, weight, inputs):
    """What the engine will see is what the block computes with, and gradients pass it."""
    block, data = one_product(weight, INT4, inputs)
    seen = []

    def coarse(name, x):
        seen.append(name)
        assert not x.requires_grad
        return torch.round(8 * x) / 8

    data = replace(data, as_seen=coarse)
    coarsely = [torch.round(8 * x) / 8 for x in inputs]
    found = numerics.dequantize(learned(block, data, 100)[0])
    start = Rounding(block.layers["layer"], None).weight.detach()

    def off(w):
        errors = [(c @ w.T - x @ weight.T, x @ weight.T) for c, x in zip(coarsely, inputs, strict=True)]
        return sum(float(((e**2).sum(-1) / (y**2).sum(-1)).mean()) for e, y in errors)

    assert set(seen) == {"site"}
    assert off(found) < 0.95 * off(start)


def test_bfloat16_learns_as_well(one_product, weight, inputs):
    block, data = one_product(weight, INT4, inputs)
    exact, coarse = (
        error(weight, numerics.dequantize(learned(block, data, 60, bfloat16=b)[0]), inputs) for b in (False, True)
    )
    assert coarse < 1.5 * exact


def test_the_report_has_the_curve(one_product, weight, inputs):
    block, data = one_product(weight, INT4, inputs)
    facts, algorithm = {}, AutoRound(Options(steps=50, learning_rate=1 / 50))
    algorithm.quantize(block, list(block.layers.values()), {}, data, lambda **told: facts.update(told))
    assert len(facts["loss"]) == 17
    assert facts["last"] < facts["loss"][0]


@pytest.mark.parametrize(
    ("options", "needs"),
    [
        ({}, Needs(data=True, gradient=True, float_stream=True, loss=True)),
        ({"guided": False}, Needs(data=True, gradient=True, float_stream=True)),
        ({"steps": 0}, Needs(data=True)),
        ({"steps": 0, "importance": False}, Needs()),
    ],
)
def test_what_it_must_be_given(options, needs):
    algorithm = AutoRound(Options(**options))
    assert algorithm.needs(SCHEMES["W4A16"]) == needs
    assert (algorithm.observe() is None) == (not algorithm.options.importance)


def test_codes_that_are_no_integers_are_refused_while_planning(one_product, weight, inputs):
    layer = one_product(weight, INT4, inputs)[0].layers["layer"].info
    scheme = QuantizationScheme(weights=QuantizationArgs(format="fp8_e4m3", granularity="channel"))
    assert "use rtn" in AutoRound().unsupported(layer, scheme)
    assert AutoRound().unsupported(layer, SCHEMES["W4A16"]) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": -1}, "steps: got -1"),
        ({"batch_size": 0}, "batch_size: got 0"),
        ({"iters": 5}, "iters: no such field"),
    ],
)
def test_an_option_that_cannot_be_is_an_error_that_names_it(options, message):
    with pytest.raises(SchemaError, match=message):
        validate(Options, options, "autoround")
