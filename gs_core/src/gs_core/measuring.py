"""How a scale changes the outputs of a site's layers, estimated from a sample. No block runs for a candidate."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gs_core import numerics
from gs_core.arrays import Array, namespace
from gs_core.interfaces import Accumulator, Layer
from gs_core.observers import Range, Sample, limits_of, static_input, take_rows
from gs_schemas import QuantizationArgs

TOKENS = 512
"""Tokens of a site to measure with."""
HELD_OUT = 1 / 8
"""Share of the tokens that take no part in choosing a static range, and measure it."""
ROWS, LARGEST = 160, 32
"""Rows of a layer's weight to measure with: the largest, and a sample of the others. A weight with fewer than twice as
many is measured whole."""


@dataclass(frozen=True)
class Seen:
    """Of a site: some ``tokens`` ``(count, features)``, and both ends of all tokens' values ``(features,)``.

    range_tokens: the tokens that a static range is chosen on, ``(count, features)``; ``tokens`` if None.
    """

    tokens: Array
    low: Array
    high: Array
    range_tokens: Array | None = None

    @property
    def maxima(self) -> Array:
        """Largest magnitude of each channel."""
        xp = namespace(self.low)
        return xp.maximum(xp.abs(self.low), xp.abs(self.high))

    @property
    def held_out(self) -> "Seen":
        """The same site with tokens that its ends were not taken from, where the watcher kept such tokens."""
        return self


@dataclass(frozen=True)
class SeenWithHeldOut(Seen):
    """``Seen`` of all tokens. other: some held-out tokens, and both ends of the values of all other tokens."""

    other: Seen | None = None

    @property
    def held_out(self) -> Seen:
        return self.other or self


class Watcher(Accumulator):
    """Collects ``Seen``."""

    def __init__(self) -> None:
        self._ends, self._sample = Range(), Sample(TOKENS)

    def update(self, x: Array) -> None:
        self._ends.update(x)
        self._sample.update(x)

    def rescale(self, scale: Array) -> bool:
        return self._sample.rescale(scale) and self._ends.rescale(scale)

    def result(self) -> Seen:
        return Seen(self._sample.result(), *self._ends.result())


class HeldOutWatcher(Accumulator):
    """Collects ``SeenWithHeldOut``.

    A static scale is chosen on calibration tokens and meets other tokens later. Some of their values lie outside its
    range and are clipped. The error on tokens that took no part in choosing the range includes this clipping.
    """

    def __init__(self) -> None:
        self._random = np.random.default_rng(0)
        self._all, self._kept, self._held_out = Watcher(), Watcher(), Sample(TOKENS)
        self._filled: list[Accumulator] = [self._all]

    def update(self, x: Array) -> None:
        held_out = self._random.random(x.shape[0]) < HELD_OUT
        self._all.update(x)
        for accumulator, rows in ((self._kept, ~held_out), (self._held_out, held_out)):
            if rows.any():
                accumulator.update(take_rows(x, np.flatnonzero(rows)))
                if accumulator not in self._filled:
                    self._filled.append(accumulator)

    def rescale(self, scale: Array) -> bool:
        return min([accumulator.rescale(scale) for accumulator in self._filled])

    def result(self) -> Seen:
        seen = self._all.result()
        if len(self._filled) < 3:  # an expert that very few tokens reached
            return seen
        kept = self._kept.result()
        held_out = Seen(self._held_out.result(), kept.low, kept.high, kept.tokens)
        return SeenWithHeldOut(seen.tokens, seen.low, seen.high, None, held_out)


@dataclass(frozen=True)
class _Part:
    """A layer and some rows of its weight.

    weight: float32 ``(rows, features)``. counts: how many rows of the layer each stands for, ``(rows,)``. wanted: their
    outputs for the float tokens, ``(count, rows)``. All candidates are compared with them.
    """

    layer: Layer
    weight: Array
    counts: Array
    wanted: Array

    @classmethod
    def of(cls, layer: Layer, tokens: Array) -> "_Part":
        weight = layer.view()
        xp = namespace(weight)
        counts = xp.ones_like(weight[:, 0])
        # Rows of other granularities share a scale, so all are needed.
        if layer.args.granularity in ("group", "channel") and weight.shape[0] >= 2 * ROWS:
            kept, counts = _sample(weight)
            weight = xp.take(weight, kept, axis=0)
        return cls(layer, weight, counts, tokens @ weight.T)

    def error(self, tokens: Array, scale: Array) -> float:
        args, dtype = self.layer.args, self.layer.dtype
        weight = numerics.dequantize(numerics.quantize_weight(self.weight * scale, args, dtype))
        wrong = tokens @ weight.T
        wrong -= self.wanted
        wrong *= wrong
        wrong *= self.counts
        return float(namespace(wrong).sum(wrong)) / tokens.shape[0]


def _sample(weight: Array) -> tuple[Array, Array]:
    """``ROWS`` or a few more rows of ``weight``, and how many rows each stands for, ``(n,)`` both.

    The error of a row is roughly proportional to its square. A few large rows can have most of the error of all, so the
    largest are always kept. The others are sampled at even distances in order of size.
    """
    xp = namespace(weight)
    order = xp.argsort(-xp.sum(weight * weight, axis=1))
    others = order[LARGEST :: (weight.shape[0] - LARGEST) // (ROWS - LARGEST)]
    each = (weight.shape[0] - LARGEST) / others.shape[0]
    counts = xp.concat([xp.ones_like(weight[:LARGEST, 0]), xp.full_like(weight[: others.shape[0], 0], each)])
    return xp.concat([order[:LARGEST], others]), counts


@dataclass(frozen=True)
class Measured:
    """Layers that share a site, and the tokens that arrive there.

    shift: what is subtracted from every token ``(features,)``, or ``None``. centred: the tokens after that
    ``(count, features)``.
    """

    seen: Seen
    shift: Array | None
    centred: Array
    parts: Sequence[_Part]

    @classmethod
    def of(cls, layers: Sequence[Layer], seen: Seen, shift: Array | None = None) -> "Measured":
        centred = seen.tokens if shift is None else seen.tokens - shift
        return cls(seen, shift, centred, [_Part.of(layer, centred) for layer in layers])

    def error(self, scale: Array) -> float:
        """Squared error of a token's outputs, summed over all layers, when it arrives as ``(x - shift) / scale``,
        ``(features,)`` each, and both it and the weights are quantized."""
        arrived, found = self.centred / scale, 0.0
        quantized: dict[tuple[QuantizationArgs | None, str], Array] = {}
        for part in self.parts:
            key = part.layer.scheme.inputs, part.layer.dtype
            if key not in quantized:
                quantized[key] = self._quantized(arrived, scale, *key)
            found += part.error(quantized[key], scale)
        return found

    def _quantized(self, tokens: Array, scale: Array, args: QuantizationArgs | None, dtype: str) -> Array:
        if args is None:
            return tokens
        static = () if args.dynamic else self._static(scale, args, dtype)
        return numerics.fake_quantize(tokens, args, *static)

    def _static(self, scale: Array, args: QuantizationArgs, dtype: str) -> tuple[Array, Array | None]:
        """The parameters that the pipeline will choose, estimated from some tokens and both ends of all."""
        seen, xp = self.seen, namespace(scale)
        limits = limits_of(args)
        tokens, *ends = (
            (x if self.shift is None else x - self.shift) / scale
            for x in (seen.tokens if seen.range_tokens is None else seen.range_tokens, seen.low, seen.high)
        )
        limits.update(xp.concat([tokens, *(xp.expand_dims(end, axis=0) for end in ends)]))
        static = static_input(limits, tokens, args, numerics.scale_dtype(args, dtype))
        return static.scale, static.zero_point
