"""Products in int8 while a block is observed whose layers will lose as much or more.

Processors with VNNI instructions make them four times as fast as float32's. Activations are rounded for each token,
weights for each row, and the channels of large activations smoothed by the square root of their largest magnitude
(SmoothQuant, https://arxiv.org/abs/2211.10438, equation 4 without its second factor), which no outlier then drowns.
That moves the median layer's output by 0.6 % of it on tiny-llama, 1.7 % beside outliers. An engine that multiplies in
int8 does the same; weights of four bits move it by 7 and 11 %, and whoever is calibrated on a float model's activations
will meet ones that are off by so much.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from gs_core import QuantizationArgs, QuantizationScheme
from gs_hf.watch import identity

FEWEST = 256
"""Rows below which rounding the weight would cost more than the product gains."""
SLICE = 64
"""Rows that stay in a processor's cache from one step to the next."""
LARGEST = 127
TINY = torch.finfo(torch.float32).tiny
COARSE = 4
"""Bits of weights whose rounding costs, in squares, over forty times what int8's does."""
SPREAD = 2.0**10
"""A channel's magnitude is taken for at least the largest one's divided by this: one that slept in the first batch may
wake in the next."""


def fast(device: str) -> bool:
    """Whether products of int8 are the fastest there."""
    return device == "cpu" and torch.cpu._is_vnni_supported()


def enough(scheme: QuantizationScheme | None) -> bool:
    """Whether a layer of this scheme loses as much when it is served, or far more."""
    if scheme is None or scheme.weights is None:
        return False
    return scheme.weights.bits <= COARSE or (_is_int8(scheme.weights) and _is_int8(scheme.inputs))


def _is_int8(args: QuantizationArgs | None) -> bool:
    return args is not None and args.format == "int8"


class Rounded(NamedTuple):
    """``codes``, int8 ``(rows, features)``, times ``steps``, ``(rows, 1)``, is what was rounded."""

    codes: torch.Tensor
    steps: torch.Tensor

    @classmethod
    def of(cls, x: torch.Tensor, factor: torch.Tensor) -> "Rounded":
        """``x * factor``: ``(rows, features)`` of any dtype, and float32 ``(features,)``."""
        found = cls(torch.empty(x.shape, dtype=torch.int8), torch.empty(len(x), 1))
        for rows, codes, steps in zip(*(t.split(SLICE) for t in (x, *found)), strict=True):
            scaled = rows.float() * factor
            low, high = scaled.amin(1, keepdim=True), scaled.amax(1, keepdim=True)
            torch.maximum(high, low.neg_(), out=steps).clamp_(min=LARGEST * TINY).div_(LARGEST)
            codes.copy_(scaled.div_(steps).round_())
        return found

    def times(self, other: "Rounded") -> torch.Tensor:
        """``self @ other.T``, float32 ``(rows, other rows)``; the sums of codes are exact."""
        sums = torch._int_mm(self.codes, other.codes.T)
        y = sums.view(torch.float32)  # in the same memory: fresh memory would cost as much as the products
        columns = other.steps.T
        for rows, codes, steps in zip(*(t.split(SLICE) for t in (y, sums, self.steps)), strict=True):
            rows.copy_(codes).mul_(steps).mul_(columns)
        return y


class Smoothed(NamedTuple):
    """What the products at a site are made of: ``state`` tells whether the weights are still as they were."""

    state: list[tuple]
    storages: list[StorageWeakRef]
    scale: torch.Tensor
    weights: dict[str, Rounded]

    @classmethod
    def of(cls, x: torch.Tensor, weights: Mapping[str, torch.Tensor], state: list[tuple]) -> "Smoothed":
        largest = torch.maximum(x.amax(0), -x.amin(0))
        floor = max(float(largest.max()) / SPREAD, TINY)
        scale = largest.clamp_(min=floor).sqrt_()
        # While its storage is referred to, no other tensor has its identity; its numbers are not kept.
        storages = [StorageWeakRef(weight.untyped_storage()) for weight in weights.values()]
        return cls(state, storages, scale, {n: Rounded.of(w, scale) for n, w in weights.items()})


class Int8:
    """The products of one block. What arrives first at a site decides how its channels are smoothed, and weights are
    rounded then; both again once a weight was written into."""

    def __init__(self) -> None:
        self._sites: dict[str, Smoothed] = {}

    def inputs(self, site: str, x: torch.Tensor, weights: Mapping[str, torch.Tensor]) -> Rounded:
        """What arrives at a site, ``(rows, features)``; ``weights`` are all that multiply it, ``(out, features)``."""
        state = [(*identity(weight), weight._version) for weight in weights.values()]
        if site not in self._sites or self._sites[site].state != state:
            self._sites[site] = Smoothed.of(x, weights, state)
        return Rounded.of(x, 1 / self._sites[site].scale)

    def product(self, site: str, x: Rounded, weight: str, bias: torch.Tensor | None = None) -> torch.Tensor:
        """``x`` by the weight of that name, plus ``bias``: float32 ``(rows, out)``."""
        y = x.times(self._sites[site].weights[weight])
        return y if bias is None else y.add_(bias)
