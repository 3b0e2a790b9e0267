"""The scale search: which scale of the channels costs the least at the outputs of all the layers behind a fold.

Equation 5 of the paper has one free number, ``s = magnitude^alpha``; ``duo_scaling`` divides by the weights' own
magnitude to the power ``1 - alpha``, as the authors' code does. With ``E`` the rounding error of ``W s``, a candidate
costs ``tr (E/s) M (E/s)ᵀ``: exactly what running the layers would show, without running them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from gs_awq.clipping import best_of
from gs_awq.moments import Moments, output_error
from gs_awq.ranges import Ranges
from gs_core import Array, Fold, Layer, namespace, numerics
from gs_core.numerics.groups import height
from gs_schemas import QuantizationArgs

SAMPLE, ROWS = 2**18, 64
"""Weights of a layer that the search looks at: whole rows, evenly spread, and so many of them at least."""
PRODUCTS = 2**33
"""Multiplications that the exact comparison of candidates may take at one fold. Where all would take more, those
that cost the least by the moments' diagonal alone go in, ``FINALISTS`` at least."""
FINALISTS = 4
FLOOR = 1e-4
"""Smallest magnitude of a channel, relative to the mean of all."""
STEP = 2.0**-12
"""Scales are multiples of this: the last bit of a power, which libraries round differently, then decides nothing."""


@dataclass(frozen=True)
class Target:
    """A layer as the search sees it.

    weight: some rows of its weight, ``(rows, features)``, and the ``share`` of all that they are.
    columns: mean magnitude of each column of the whole weight, each element relative to the widest that shares its
        scale, ``(features,)``.
    moments, magnitude: of its input, ``(features, features)`` as ``rough`` gives them and ``(features,)``.
    diagonal: that of the moments, float32 ``(features,)``.
    """

    weight: Array
    share: float
    columns: Array
    ranges: Ranges
    moments: Array
    magnitude: Array
    diagonal: Array

    @classmethod
    def of(cls, layer: Layer, observed: Moments, moments: Array, signed: bool = True) -> "Target":
        weight, rows = layer.view(), layer.shape[0]
        # Rows that share a scale stay together.
        together = height(rows, layer.args)
        step = max(1, min(rows * layer.shape[1] // SAMPLE, rows // ROWS)) if together == 1 else 1
        sample = weight[::step, :]
        columns = _column_magnitude(weight, layer.args)
        ranges = Ranges.of(layer, signed)
        return cls(sample, sample.shape[0] / rows, columns, ranges, moments, observed.magnitude, observed.diagonal)

    @property
    def products(self) -> int:
        """Multiplications of one exact cost."""
        return int(self.weight.shape[0] * self.weight.shape[1] ** 2)

    def error(self, scale: Array, ratios: Sequence[float]) -> Array:
        """What rounding ``W s`` changes in ``W``, for scales ``(features,)``; each range clipped by the best ratio."""
        scaled = self.weight * scale
        importance = self.diagonal / (scale * scale)
        return (best_of(scaled, self.ranges, ratios, importance) - scaled) / scale


def search(fold: Fold, targets: Sequence[Target], alphas: Sequence[float], duo: bool, ratios: Sequence[float]) -> Array:
    """The cheapest of ``candidates``, ``(channels,)``."""
    xp = namespace(targets[0].weight)
    tried = candidates(fold, targets, alphas, duo)

    def cost(scale: Array, exact: bool) -> float:
        total = 0.0
        for target in targets:
            error = target.error(fold.expand(scale), ratios)
            rows = output_error(error, target.moments) if exact else (error * error) @ target.diagonal
            total += float(xp.sum(rows)) / target.share
        return total

    finalists = max(FINALISTS, PRODUCTS // sum(target.products for target in targets))
    if finalists < len(tried):
        tried = sorted(tried, key=lambda scale: cost(scale, exact=False))[:finalists]
    return min(tried, key=lambda scale: cost(scale, exact=True))


def candidates(fold: Fold, targets: Sequence[Target], alphas: Sequence[float], duo: bool) -> list[Array]:
    """No scale at all, and that of each of ``alphas``, ``(channels,)`` each."""
    xp = namespace(targets[0].weight)
    activation = _relative(fold.reduce_max([target.magnitude for target in targets]))
    weight = _relative(fold.reduce_max([target.columns for target in targets]))
    found = [xp.ones_like(activation)]
    for alpha in alphas:
        scale = activation**alpha / weight ** (1.0 - alpha) if duo else activation**alpha
        scale = scale / (xp.max(scale) * xp.min(scale)) ** 0.5
        found.append(xp.clip(xp.round(scale / STEP) * STEP, min=STEP))
    return found


def _relative(magnitude: Array) -> Array:
    xp = namespace(magnitude)
    mean = xp.mean(magnitude)
    return xp.clip(magnitude / mean, min=FLOOR) if float(mean) > 0 else xp.ones_like(magnitude)


def _column_magnitude(weight: Array, args: QuantizationArgs) -> Array:
    xp = namespace(weight)
    total = xp.zeros_like(weight[0, :])
    for rows, _ in numerics.slices(weight, height(weight.shape[0], args)):
        values = xp.abs(numerics.split(weight[rows, :], args))
        widest = xp.max(values, axis=-1, keepdims=True)
        values = values / xp.where(widest > 0, widest, xp.ones_like(widest))
        total += xp.sum(numerics.join(values, weight[rows, :].shape, args), axis=0)
    return total / weight.shape[0]
