"""Quantizing and dequantizing in a way that gradients pass: through the codes, the scales, and the clipping."""

import torch

from gs_core import numerics
from gs_schemas import QuantizationArgs


class _Round(torch.autograd.Function):
    """To the nearest integer; the gradient of the identity."""

    @staticmethod
    def forward(context: object, x: torch.Tensor) -> torch.Tensor:
        return torch.round(x)

    @staticmethod
    def backward(context: object, gradient: torch.Tensor) -> torch.Tensor:
        return gradient


def quantized(
    x: torch.Tensor, args: QuantizationArgs, low: torch.Tensor | float = 1.0, high: torch.Tensor | float = 1.0
) -> torch.Tensor:
    """``x`` ``(rows, features)`` as an engine sees it, by ``gs_core.numerics``' convention with scales in float32.

    low, high: the fractions of the range below and above zero that are kept, ``(rows, groups)``. Unlike the numerics,
    it is differentiable: a range has the gradient of its smallest and largest value, so that a map learns to make
    them smaller.
    """
    values, number = numerics.split(x, args), args.number
    codes = number.maximum - number.minimum
    below, above = values.amin(-1) * low, values.amax(-1) * high
    if args.symmetric:
        scale, zero_point = _positive(torch.maximum(below.abs(), above.abs()) * (2.0 / codes))[..., None], 0.0
    else:
        scale = _positive((above.clamp(min=0) - below.clamp(max=0)) * (1.0 / codes))[..., None]
        zero_point = (number.minimum - _Round.apply(below.clamp(max=0)[..., None] / scale)).clamp(
            number.minimum, number.maximum
        )
    rounded = (_Round.apply(values / scale) + zero_point).clamp(number.minimum, number.maximum)
    return numerics.join((rounded - zero_point) * scale, x.shape, args)


def _positive(scale: torch.Tensor) -> torch.Tensor:
    """A group of zeros has no range: any scale says it exactly."""
    return torch.where(scale > 0, scale, torch.ones_like(scale))
