"""A histogram of everything that passed a site, and the ranges that can be read off it.

Its limits are powers of two and grow by doubling, which joins neighbouring bins exactly: the same data in any order
and in any batches give the same counts.
"""

from typing import Any

import numpy as np

from gs_core import numerics
from gs_core.arrays import Array, to_numpy
from gs_core.interfaces import Accumulator
from gs_schemas import QuantizationArgs

BINS = 8192
"""Bins from end to end: thirty-two or more to a step of eight bits."""
DIVERGENCE_BINS = 2048


class Histogram(Accumulator):
    """Counts of values, int64 ``(BINS,)``, between ``-limit`` and ``limit``; and the smallest and largest value."""

    def __init__(self) -> None:
        self.counts = np.zeros(BINS, np.int64)
        self.limit = 0.0
        self.low, self.high = np.inf, -np.inf

    def update(self, x: Array) -> None:
        values = to_numpy(x).reshape(-1)
        low, high = float(values.min()), float(values.max())
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._grow(max(-low, high))
        if self.limit:
            at = np.floor(values * (BINS / 2 / self.limit)).astype(np.int64) + BINS // 2
            self.counts += np.bincount(np.clip(at, 0, BINS - 1), minlength=BINS)
        else:
            self.counts[BINS // 2] += len(values)

    def _grow(self, magnitude: float) -> None:
        if magnitude <= self.limit:
            return
        wanted = 2.0 ** np.ceil(np.log2(magnitude))
        while self.limit and self.limit < wanted and self.counts.any():
            joined = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.concatenate([np.zeros(BINS // 4, np.int64), joined, np.zeros(BINS // 4, np.int64)])
            self.limit *= 2
        self.limit = wanted

    def result(self) -> "Histogram":
        return self

    def limits(self, args: QuantizationArgs, dtype: str) -> tuple[float, float]:
        """The range that ``args.observer`` chooses: ``mse``, ``percentile`` or ``divergence``."""
        if not self.limit:
            return 0.0, 0.0
        if args.observer == "percentile":
            assert args.percentile is not None
            return self.percentile(args.percentile, args.symmetric)
        centres = (np.arange(BINS) + 0.5 - BINS // 2) * (2 * self.limit / BINS)
        choose = _least_divergence if args.observer == "divergence" else _least_error
        fraction = choose(np.clip(centres, self.low, self.high), self.counts, (self.low, self.high), args, dtype)
        return self.low * fraction, self.high * fraction

    def percentile(self, percent: float, symmetric: bool) -> tuple[float, float]:
        """The range that keeps ``percent`` of all values: of their magnitudes, or else with as many left out below
        as above. Interpolated inside a bin."""
        if symmetric:
            half = BINS // 2
            edge = _quantile(self.counts[half:] + self.counts[:half][::-1], percent / 100) * self.limit / half
            edge = min(edge, max(-self.low, self.high))
            return -edge, edge
        tail = (1 - percent / 100) / 2
        low, high = (_quantile(self.counts, q) * 2 * self.limit / BINS - self.limit for q in (tail, 1 - tail))
        return max(low, self.low), min(high, self.high)


def _quantile(counts: np.ndarray, q: float) -> float:
    """Where a fraction ``q`` of the counts lies to the left, in bins."""
    below = np.cumsum(counts)
    target = min(q, 1.0) * below[-1]
    bin_ = min(int(np.searchsorted(below, target)), int(np.flatnonzero(counts)[-1]))
    before = below[bin_ - 1] if bin_ else 0
    return bin_ + (target - before) / max(1, counts[bin_])


def _least_error(
    centres: np.ndarray, counts: np.ndarray, ends: tuple[float, float], args: QuantizationArgs, dtype: str
) -> float:
    # The ends join with no weight, so that a fraction is one of the true range.
    values = np.concatenate([centres[counts > 0], ends]).astype(np.float32)
    weight = np.concatenate([counts[counts > 0], (0, 0)]).astype(np.float32)
    return float(numerics.mse_fraction(values.reshape(1, 1, -1), args, dtype, weight)[0, 0])


def _least_divergence(
    centres: np.ndarray, counts: np.ndarray, ends: tuple[float, float], args: QuantizationArgs, dtype: str
) -> float:
    """The fraction of the range whose codes tell least about the distribution away: the Kullback-Leibler divergence
    of the clipped histogram from the one that the codes remember, each code's mass spread evenly over its bins.

    The calibration of Migacz, "8-bit Inference with TensorRT" (2017), for any format and a zero point.
    """
    join = BINS // DIVERGENCE_BINS
    centres, counts = centres.reshape(-1, join).mean(axis=1), counts.reshape(-1, join).sum(axis=1)
    inside = counts > 0
    centres, counts = centres[inside].astype(np.float32), counts[inside].astype(np.float64)
    levels = int(args.number.maximum - args.number.minimum) + 1
    fractions = np.arange(levels // 2, DIVERGENCE_BINS // 2 + 1) / (DIVERGENCE_BINS // 2)
    found = [divergence(centres, counts, ends, float(f), args, dtype) for f in fractions]
    # The wider of two equals: nothing is clipped for nothing.
    return float(fractions[len(found) - 1 - int(np.argmin(found[::-1]))])


def divergence(
    centres: np.ndarray,
    counts: np.ndarray,
    ends: tuple[float, float],
    fraction: float,
    args: QuantizationArgs,
    dtype: str,
) -> float:
    """Divergence in nats at one fraction of the range; ``centres`` and ``counts`` of the bins that are not empty."""
    low, high = (np.asarray([end * fraction], np.float32) for end in ends)
    scale, zero_point = numerics.scale_from_range(low, high, args, dtype)
    wide: Any = scale.astype(np.float32)
    codes = numerics.encode(centres, wide, zero_point, args).astype(np.int64) - int(args.number.minimum)
    kept = (centres >= low) & (centres <= high)
    if not kept.any():
        return float("inf")
    clipped = counts * kept
    clipped[np.argmax(kept)] += counts[: np.argmax(kept)].sum()
    last = len(kept) - 1 - int(np.argmax(kept[::-1]))
    clipped[last] += counts[last + 1 :].sum()
    # What the codes remember knows nothing of what was clipped: that is the price of clipping.
    mass, bins = (np.bincount(codes[kept], weights=w[kept]) for w in (counts, np.ones_like(counts)))
    remembered = mass[codes[kept]] / bins[codes[kept]]
    p, q = clipped[kept] / clipped.sum(), remembered / remembered.sum()
    return float((p * np.log(p / q)).sum())
