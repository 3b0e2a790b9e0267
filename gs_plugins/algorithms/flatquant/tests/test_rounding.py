"""Differentiable quantizing says what the numerics say, and lets gradients through the scales."""

import pytest
import torch

from gs_core import QuantizationArgs, numerics
from gs_flatquant.rounding import quantized

SYMMETRIC = QuantizationArgs(format="int4", granularity="token", dynamic=True)
ASYMMETRIC = SYMMETRIC.model_copy(update={"symmetric": False})


@pytest.fixture
def x():
    return torch.randn(40, 24, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("args", [SYMMETRIC, ASYMMETRIC], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("format", ["int4", "int8"])
def test_activations_are_what_an_engine_sees(args, format, x):
    args = args.model_copy(update={"format": format})
    x[3] = 0
    torch.testing.assert_close(quantized(x, args), numerics.fake_quantize(x, args))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("granularity", "size"), [("channel", None), ("group", 8), ("tensor", None)])
def test_weights_are_what_will_be_stored(symmetric, granularity, size, x):
    args = QuantizationArgs(format="int4", granularity=granularity, group_size=size, symmetric=symmetric)
    wanted = numerics.dequantize(numerics.quantize_weight(x, args, "float32"))
    torch.testing.assert_close(quantized(x, args), wanted)


def test_the_largest_value_feels_the_error_of_all(x):
    """d/d max of Σ g · s · round(x/s) is Σ g · (q − x/s) · ds/d max: what makes a map learn to shrink outliers."""
    x = x[:1].clone().requires_grad_()
    gradient = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    (quantized(x, SYMMETRIC) * gradient).sum().backward()
    largest = int(x.detach().abs().argmax())
    scale = x.detach().abs().max() * (2.0 / 15)
    steps = x.detach() / scale
    codes = steps.round().clamp(-8, 7)
    free = codes == steps.round()
    through_scale = (gradient * (codes - steps * free)).sum() * 2 / 15 * x.detach()[0, largest].sign()
    expected = gradient * free
    expected[0, largest] += through_scale
    torch.testing.assert_close(x.grad, expected, rtol=1e-4, atol=1e-5)


def test_a_narrower_range_clips(x):
    args = QuantizationArgs(format="int8", granularity="channel")
    kept = quantized(x, args, 0.5, 0.5)
    limit = 0.5 * x.abs().amax(1, keepdim=True)
    assert (kept.abs() <= limit * 1.01).all()
    inside = x.abs() < 0.9 * limit
    assert (kept - x)[inside].abs().max() < 0.01
