"""Statistics that the line itself collects at sites: ranges of static activations, and a sample to judge by."""

from gs_core import numerics
from gs_core.arrays import Array, namespace
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


def static_input(range_: tuple[Array, Array], sample: Array, args: QuantizationArgs, dtype: str) -> StaticInput:
    """Per-tensor scale and zero point for a site, by ``args.observer``, the scale in the dtype it is stored in.

    ``mse`` takes the fraction of the full range that suits the sampled rows best.
    """
    xp = namespace(sample)
    low, high = xp.reshape(xp.min(range_[0]), (1,)), xp.reshape(xp.max(range_[1]), (1,))
    if args.observer == "mse":
        values = xp.concat([xp.reshape(sample, (-1,)), low, high])
        fraction = numerics.mse_fraction(xp.reshape(values, (1, 1, -1)), args, dtype)
        low, high = low * fraction[0, :], high * fraction[0, :]
    return StaticInput(*numerics.scale_from_range(low, high, args, dtype))
