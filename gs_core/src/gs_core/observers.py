"""Statistics of what arrives at a site: ranges of static activations and a sample to judge by, which the line collects
itself, and the maxima of channels, which several algorithms ask for."""

import numpy as np

from gs_core import numerics
from gs_core.arrays import Array, device, namespace
from gs_core.histogram import Histogram
from gs_core.interfaces import Accumulator, StaticInput
from gs_core.linear_map import LinearMap
from gs_schemas import QuantizationArgs

SAMPLE_ROWS = 256


class Range(Accumulator):
    """Smallest and largest value of every channel, so that scaling a channel afterwards needs no second look.

    ``result()``: two float32 ``(features,)`` arrays.
    """

    low: Array = None
    high: Array = None

    def update(self, x: Array) -> None:
        xp = namespace(x)
        low, high = xp.min(x, axis=0), xp.max(x, axis=0)
        self.low = low if self.low is None else xp.minimum(self.low, low)
        self.high = high if self.high is None else xp.maximum(self.high, high)

    def rescale(self, scale: Array) -> bool:
        self.low, self.high = self.low / scale, self.high / scale
        return True

    def result(self) -> tuple[Array, Array]:
        return self.low, self.high

    def limits(self, args: QuantizationArgs, dtype: str) -> tuple[float, float]:
        """Smallest and largest value of all channels."""
        xp = namespace(self.low)
        return float(xp.min(self.low)), float(xp.max(self.high))


class ChannelMaxima(Accumulator):
    """Largest magnitude of each channel, float32 ``(features,)``."""

    maxima: Array = None

    def update(self, x: Array) -> None:
        xp = namespace(x)
        for rows, _ in numerics.slices(x):
            here = xp.max(xp.abs(x[rows, :]), axis=0)
            self.maxima = here if self.maxima is None else xp.maximum(self.maxima, here)

    def rescale(self, scale: Array) -> bool:
        self.maxima = self.maxima / scale
        return True

    def result(self) -> Array:
        return self.maxima


class Average(Accumulator):
    """The mean over the batches of each one's smallest and largest value: a rare outlier hardly counts."""

    low = high = 0.0
    batches = 0

    def update(self, x: Array) -> None:
        xp = namespace(x)
        self.batches += 1
        self.low += float(xp.min(x))
        self.high += float(xp.max(x))

    def result(self) -> "Average":
        return self

    def limits(self, args: QuantizationArgs, dtype: str) -> tuple[float, float]:
        return self.low / self.batches, self.high / self.batches


class Sample(Accumulator):
    """Some of all rows, each as likely as another, in their order: float32 ``(≤ size, features)``.

    At equal distances they would be the same few positions of every sequence, and the first tokens of a sequence are
    unlike all others. Every row draws a number, and the smallest are kept.
    """

    def __init__(self, size: int = SAMPLE_ROWS):
        self._size, self._limit = size, 1.0
        self._random = np.random.default_rng(0)
        self._drawn = np.empty(0)
        self._rows: list[Array] = []

    def update(self, x: Array) -> None:
        drawn = self._random.random(x.shape[0])
        chosen = np.flatnonzero(drawn < min(self._limit, _smallest(drawn, self._size)))
        self._rows.append(take_rows(x, chosen))
        self._drawn = np.concatenate([self._drawn, drawn[chosen]])
        if len(self._drawn) > 2 * self._size:
            self._trim()

    def _trim(self) -> None:
        self._limit = min(self._limit, _smallest(self._drawn, self._size))
        chosen = np.flatnonzero(self._drawn < self._limit)
        self._rows = [take_rows(namespace(self._rows[0]).concat(self._rows, axis=0), chosen)]
        self._drawn = self._drawn[chosen]

    def rescale(self, scale: Array) -> bool:
        self._rows = [rows / scale for rows in self._rows]
        return True

    def transform(self, map: LinearMap) -> bool:
        self._rows = [map.apply(rows) for rows in self._rows]
        return True

    def result(self) -> Array:
        self._trim()
        return self._rows[0]


def _smallest(drawn: np.ndarray, count: int) -> float:
    """What ``count`` of these numbers between 0 and 1 lie below."""
    return float(np.partition(drawn, count)[count]) if len(drawn) > count else 1.0


def take_rows(x: Array, rows: np.ndarray) -> Array:
    """A copy: a view would keep every activation of every batch in memory."""
    xp = namespace(x)
    return xp.take(x, xp.asarray(rows, device=device(x)), axis=0)


Limits = Range | Average | Histogram


def limits_of(args: QuantizationArgs) -> Limits:
    """What collects the range of a static activation, by ``args.observer``."""
    match args.observer:
        case "minmax":
            return Range()
        case "average":
            return Average()
        case _:
            return Histogram()


def static_input(found: Limits, like: Array, args: QuantizationArgs, dtype: str) -> StaticInput:
    """Per-tensor scale and zero point for a site, the scale in the dtype it is stored in; arrays like ``like``."""
    xp = namespace(like)
    low, high = (xp.asarray([end], dtype=xp.float32, device=device(like)) for end in found.limits(args, dtype))
    return StaticInput(*numerics.scale_from_range(low, high, args, dtype))
