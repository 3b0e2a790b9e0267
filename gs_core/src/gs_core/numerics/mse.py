"""The range whose rounding costs the least squared error, by trying fractions of the full one: the error is not convex
in the fraction."""

from dataclasses import dataclass

from gs_core.arrays import Array, astype, device, namespace
from gs_core.numerics.integer import nearest_codes, scale_from_range
from gs_schemas import QuantizationArgs

STEPS, STRIDE, SMALLEST = 80, 4, 0.2
"""The search knows this many fractions of the full range, down to the smallest. It tries every fourth, then those
around the best."""
AT_ONCE = 10
"""Fractions after which those groups are left out that clip too much already."""


def mse_fraction(values: Array, args: QuantizationArgs, dtype: str, importance: Array | None = None) -> Array:
    """The fraction of the full range that minimises the (weighted) squared rounding error of each group.

    values: ``(rows, groups, elements)``. importance: broadcasts against them (the diagonal of a Hessian, for one).
    Returns ``(rows, groups)``.
    """
    xp = namespace(values)
    low, high = xp.min(values, axis=-1), xp.max(values, axis=-1)
    if importance is not None:
        importance = xp.broadcast_to(importance, values.shape)
    search = _Search(values, importance, low, high, xp.full_like(low, float("inf")), xp.ones_like(low), args, dtype)
    step = (1.0 - SMALLEST) / STEPS
    search.descend(1.0 - xp.arange(0, STEPS, STRIDE, dtype=low.dtype, device=device(low)) * step)
    near = [number for number in range(1 - STRIDE, STRIDE) if number]
    around = xp.reshape(xp.asarray(near, dtype=low.dtype, device=device(low)), (-1, 1, 1)) * step
    search.offer(xp.clip(search.best + around, max=1.0))
    return search.best


@dataclass
class _Search:
    """Groups ``values``, their ranges, and for each the best fraction so far and the least error, which it has."""

    values: Array
    importance: Array | None
    low: Array
    high: Array
    least: Array
    best: Array
    args: QuantizationArgs
    dtype: str

    def descend(self, fractions: Array) -> None:
        """Try ``fractions``, which fall. Where clipping alone costs more than the least error, it does at all smaller
        ones: few groups are left after the half of them."""
        xp = namespace(fractions)
        self.offer(xp.reshape(fractions[:AT_ONCE], (-1, 1, 1)))
        rest = fractions[AT_ONCE:]
        if rest.shape[0] == 0:
            return
        still = self._open(rest[0])
        left = int(xp.count_nonzero(still))
        if (
            2 * left > self.low.shape[0] * self.low.shape[1]
        ):  # to set them apart would cost as much as to go on with all
            self.descend(rest)
        elif left:
            part = self._part(still)
            part.descend(rest)
            self.best[still], self.least[still] = part.best[:, 0], part.least[:, 0]

    def offer(self, fractions: Array) -> None:
        """``(fractions, rows, groups)``, or with one row and group for all of them."""
        xp = namespace(fractions)
        scales, zero_points = self._scales(fractions)
        inverse = 1.0 / scales  # to divide by costs twice as much; which fraction is best does not hang on a last digit
        for i in range(fractions.shape[0]):
            zero_point = None if zero_points is None else zero_points[i, ...]
            error = nearest_codes(self.values * inverse[i, ...], zero_point, self.args)
            if zero_point is not None:
                error -= zero_point
            error *= scales[i, ...]
            error -= self.values
            total = self._cost(error)
            better = total < self.least
            self.least = xp.where(better, total, self.least)
            self.best = xp.where(better, fractions[i, ...], self.best)

    def _scales(self, fractions: Array) -> tuple[Array, Array | None]:
        scale, zero_point = scale_from_range(self.low * fractions, self.high * fractions, self.args, self.dtype)
        xp = namespace(fractions)
        scale = xp.expand_dims(astype(scale, "float32"), axis=-1)
        return scale, None if zero_point is None else xp.expand_dims(zero_point, axis=-1)

    def _cost(self, error: Array) -> Array:
        """Of each group; ``error`` is used up."""
        error *= error
        if self.importance is not None:
            error *= self.importance
        return namespace(error).sum(error, axis=-1)

    def _open(self, fraction: Array) -> Array:
        """Whether it could be better than the best, ``(rows, groups)``: it could not where clipping alone costs more.
        With a zero point, whose rounding moves both ends, it always could."""
        xp = namespace(self.low)
        if not self.args.symmetric:
            return xp.ones_like(self.low, dtype=xp.bool)
        scale, number = self._scales(fraction)[0], self.args.number
        clipped = xp.clip(self.values, number.minimum * scale, number.maximum * scale)
        clipped -= self.values
        return self._cost(clipped) <= self.least

    def _part(self, some: Array) -> "_Search":
        """Those groups, one to a row."""

        def pick(x: Array) -> Array:
            return namespace(x).expand_dims(x[some], axis=1)

        importance = None if self.importance is None else pick(self.importance)
        ends = pick(self.low), pick(self.high)
        return _Search(pick(self.values), importance, *ends, pick(self.least), pick(self.best), self.args, self.dtype)
