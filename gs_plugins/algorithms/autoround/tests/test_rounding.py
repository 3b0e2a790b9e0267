"""What is learned of one layer: forwards as the paper writes it, backwards as autograd would have it."""

from dataclasses import replace

import pytest
import torch

from gs_autoround.rounding import LARGEST_OFFSET, Rounding
from gs_core import QuantizationArgs, numerics
from gs_core.arrays import astype
from gs_core.testing import HeldLayer

GROUP = 16
ARGS = {
    f"{name} {kind}": QuantizationArgs(format=format, granularity=name, group_size=size, symmetric=kind == "symmetric")
    for name, size in (("group", GROUP), ("channel", None), ("tensor", None))
    for kind, format in (("symmetric", "int4"), ("asymmetric", "uint4"), ("signed asymmetric", "int3"))
}
each = pytest.mark.parametrize("args", ARGS.values(), ids=ARGS)


@pytest.fixture
def weight():
    return torch.randn(6, 3 * GROUP, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def moved(weight):
    """A rounding some way from where it started: ``moved(args, dtype)``."""

    def make(args, dtype="float32"):
        rounding, random = Rounding(HeldLayer(weight, args, dtype=dtype), None), torch.Generator().manual_seed(1)
        rounding.offset = torch.rand(rounding.offset.shape, generator=random) - 0.5
        rounding.keep_low = 0.4 + 0.5 * torch.rand(rounding.keep_low.shape, generator=random)
        rounding.keep_high = 0.4 + 0.5 * torch.rand(rounding.keep_high.shape, generator=random)
        rounding.refresh()
        return rounding

    return make


class Straight(torch.autograd.Function):
    """Rounds; its gradient is the identity's."""

    @staticmethod
    def forward(context, x):
        return torch.round(x)

    @staticmethod
    def backward(context, gradient):
        return gradient


def paper(weight, args, sign, offset, keep_low, keep_high):
    """Equations 2 and 3 of the paper, differentiable; scale and zero point by this project's convention, and groups
    turned whose scale is negative."""
    values, number = numerics.split(weight, args) * sign[..., None], args.number
    low, high = values.amin(-1) * keep_low, values.amax(-1) * keep_high
    if args.symmetric:
        scale, zero_point = torch.maximum(low.abs(), high.abs()) * 2 / (number.maximum - number.minimum), 0.0
    else:
        scale = (high - low) / (number.maximum - number.minimum)
        zero_point = (number.minimum - Straight.apply(low / scale))[..., None]
    codes = Straight.apply(values / scale[..., None] + offset) + zero_point
    values = (codes.clamp(number.minimum, number.maximum) - zero_point) * (sign * scale)[..., None]
    return numerics.join(values, weight.shape, args)


@each
def test_the_weight_is_the_papers(args, moved, weight):
    rounding = moved(args)
    found = paper(weight, args, rounding.sign, rounding.offset, rounding.keep_low, rounding.keep_high)
    torch.testing.assert_close(rounding.weight.detach(), found)


@each
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_what_is_exported_is_what_was_learned_bit_for_bit(args, dtype, moved):
    rounding = moved(args, dtype)
    tensor = rounding.tensor()
    assert tensor.scale.dtype == getattr(torch, dtype)
    assert torch.equal(numerics.dequantize(tensor), rounding.weight.detach())


@each
def test_steps_go_where_autograd_says(args, moved, weight):
    """The sign of every derivative by autograd, through the paper's formulas."""
    rounding, step = moved(args), 1e-3
    learned = [t.clone().requires_grad_() for t in (rounding.offset, rounding.keep_low, rounding.keep_high)]
    towards = torch.randn(weight.shape, generator=torch.Generator().manual_seed(2))
    (paper(weight, args, rounding.sign, *learned) * towards).sum().backward()
    rounding.weight.grad = towards.clone()
    rounding.update(step)
    outermost = 2 * step / (args.number.maximum - args.number.minimum)
    for value, before, by in zip(
        (rounding.offset, rounding.keep_low, rounding.keep_high), learned, (step, outermost, outermost), strict=True
    ):
        wanted = (before - by * before.grad.sign()).detach()
        if value is rounding.offset:
            wanted = wanted.clamp(-LARGEST_OFFSET, LARGEST_OFFSET)
        torch.testing.assert_close(value, wanted)


def test_offsets_of_large_features_move_by_less(weight):
    """By as much as the feature is larger than the median; of small ones by more, but not without end."""
    importance = torch.ones(weight.shape[1])
    importance[3], importance[4], importance[5] = 100.0**2, 0.5**2, 0.0
    rounding = Rounding(HeldLayer(weight, ARGS["channel symmetric"]), importance)
    rounding.weight.grad = torch.ones(weight.shape)
    rounding.update(0.1)
    moved = numerics.join(rounding.offset, weight.shape, rounding.args).abs()
    for feature, paced in ((0, 1.0), (3, 0.01), (4, 2.0), (5, 4.0)):
        assert float(moved[:, feature].amax()) == pytest.approx(0.1 * paced), "but where a code is clipped"


@each
def test_offsets_choose_between_the_two_codes_around_a_weight(args, weight):
    rounding = Rounding(HeldLayer(weight, args), None)
    nearest = rounding.tensor().codes.int()
    for _ in range(8):
        rounding.weight.grad = torch.ones(weight.shape)
        rounding.update(0.1)
    assert rounding.offset.abs().max() == LARGEST_OFFSET
    rounding = Rounding(HeldLayer(weight, args), None)
    rounding.offset = LARGEST_OFFSET * torch.randn(rounding.offset.shape).sign()
    rounding.refresh()
    assert (rounding.tensor().codes.int() - nearest).abs().max() == 1


@pytest.mark.parametrize("kind", ["symmetric", "asymmetric"])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_starts_from_what_another_algorithm_made(kind, sign, dtype, weight):
    args = ARGS[f"group {kind}"]
    noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(3))
    start = numerics.quantize_weight(weight + 0.3 * noise, args, dtype)
    start = replace(start, scale=sign * start.scale) if args.symmetric else start
    rounding = Rounding(HeldLayer(weight, args, dtype=dtype), None, start)
    found = rounding.tensor()
    assert torch.equal(found.codes, start.codes)
    torch.testing.assert_close(found.scale, start.scale)
    assert start.zero_point is None or torch.equal(found.zero_point, start.zero_point)


def test_narrow_scales_take_the_sign_that_reaches_further():
    """The one positive value of largest magnitude becomes the code that has no opposite."""
    weight = torch.tensor([[0.2, -0.4, 1.6, 0.0] * 4, [0.2, 0.4, -1.6, 0.0] * 4])
    narrow, wide = (QuantizationArgs(format=f"int{bits}", granularity="channel") for bits in (4, 8))
    found = Rounding(HeldLayer(weight, narrow), None)
    assert found.tensor().scale.sign().flatten().tolist() == [-1, 1]
    assert found.tensor().codes.amin(1).tolist() == [-8, -8]
    torch.testing.assert_close(found.weight.detach(), weight, rtol=0.01, atol=0)
    assert (Rounding(HeldLayer(weight, wide), None).tensor().scale > 0).all()


def test_without_a_gradient_nothing_moves(weight):
    """An expert that no token reached."""
    rounding = Rounding(HeldLayer(weight, ARGS["group symmetric"]), None)
    before = rounding.tensor()
    rounding.update(0.1)
    rounding.refresh()
    assert torch.equal(rounding.tensor().codes, before.codes)


def test_a_group_of_zeros_is_left_alone(weight):
    weight[:, :GROUP] = 0
    for args in ARGS.values():
        rounding = Rounding(HeldLayer(weight, args), None)
        rounding.weight.grad = torch.randn(weight.shape)
        rounding.update(0.1)
        rounding.offset.zero_()
        rounding.refresh()
        assert not rounding.weight[:, :GROUP].any()
        assert rounding.weight.isfinite().all()


@pytest.mark.parametrize("args", [ARGS["group symmetric"], ARGS["group asymmetric"]])
def test_the_start_clips_where_that_costs_least(weight, args):
    """Against every fraction of the full range in hundredths, weighed by importance."""
    importance = torch.linspace(0.1, 4, weight.shape[1])
    rounding = Rounding(HeldLayer(weight, args), importance)
    values = numerics.split(weight, args)
    best = torch.full(values.shape[:2], float("inf"))
    for percent in range(20, 101):
        scale, zero_point = numerics.scale_from_range(
            *(limit * percent / 100 for limit in numerics.minmax(values)), args, "float32"
        )
        found = numerics.dequantize(
            numerics.quantize_with(weight, scale, None if zero_point is None else astype(zero_point, "float32"), args)
        )
        cost = numerics.split((found - weight) ** 2 * importance, args).sum(-1)
        best = torch.minimum(best, cost)
    ours = numerics.split((rounding.weight.detach() - weight) ** 2 * importance, args).sum(-1)
    assert (ours <= 1.05 * best).all()
