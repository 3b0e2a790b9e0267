"""Statistics of what arrives at a site: ranges of static activations and a sample to judge by, which the line collects
itself, and the maxima of channels, which several algorithms ask for."""

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
    """A few rows, evenly spread over the batches, ``(≤ SAMPLE_ROWS, features)`` float32."""

    def __init__(self, batches: int):
        self._per_batch = -(-SAMPLE_ROWS // batches)
        self._rows: list[Array] = []

    def update(self, x: Array) -> None:
        step = max(1, x.shape[0] // self._per_batch)
        rows = x[: min(x.shape[0], step * self._per_batch) : step, ...]
        # A copy: a view would keep every activation of every batch in memory.
        self._rows.append(namespace(x).asarray(rows, copy=True))

    def rescale(self, scale: Array) -> bool:
        self._rows = [rows / scale for rows in self._rows]
        return True

    def transform(self, map: LinearMap) -> bool:
        self._rows = [map.apply(rows) for rows in self._rows]
        return True

    def result(self) -> Array:
        xp = namespace(self._rows[0])
        rows = xp.concat(self._rows, axis=0)
        return rows[: min(rows.shape[0], SAMPLE_ROWS), ...]


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
