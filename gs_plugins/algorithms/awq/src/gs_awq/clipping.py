"""The clip search: how much of each range to give up for a finer step, judged at the layer's output.

The paper takes each group alone. But the errors of a row add up before they are squared, so here a group is judged
together with the others: of ``e M eᵀ``, with ``e`` the errors of a row, its own share and twice its product with
the errors of the groups already chosen.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from gs_awq.ranges import Ends, Ranges
from gs_core import Array, namespace, numerics
from gs_core.arrays import astype, device
from gs_core.numerics import minmax
from gs_core.numerics.groups import height
from gs_core.products import rough

ROWS = 2048
"""Rows of a weight that are worked on at a time."""


def clip(
    weight: Array, ranges: Ranges, moments: Array, ratios: Sequence[float], sweeps: int, shrinkage: float = 0.0
) -> tuple[Array, Array | None]:
    """Scales and zero points ``(rows, groups)`` of a weight ``(out, in)``, scales in the dtype they are stored in.

    moments: ``(in, in)``, see ``Moments``. ratios: parts of the range to choose from. sweeps: how often each group
    is chosen; the first time of all ratios by the groups before it, then of its neighbours by all other groups, back
    and forth: what the groups on one side add was found on the way here, so a sweep costs half of ``e M``.
    shrinkage: the part of ``moments`` outside the diagonal that is left out, 0 to 1.
    """
    xp = namespace(weight)
    together = height(weight.shape[0], ranges.args)
    step = max(1, ROWS // together) * together
    found = []
    for start in range(0, weight.shape[0], step):
        rows = weight[start : min(start + step, weight.shape[0]), :]
        ends = minmax(numerics.split(rows, ranges.args))
        best = _best(rows, ranges, Tried.of(ranges, ends, ratios), moments, sweeps, 1.0 - shrinkage)
        known = xp.asarray(ratios, dtype=weight.dtype, device=device(weight))
        found.append(ranges.parameters(ends, xp.reshape(xp.take(known, xp.reshape(best, (-1,)), axis=0), best.shape)))
    scales, zero_points = zip(*found, strict=True)
    return xp.concat(scales), None if zero_points[0] is None else xp.concat(zero_points)


@dataclass(frozen=True)
class Tried:
    """The scales and zero points of every ratio, ``(groups, ratios * rows)`` float32."""

    scales: Array
    zero_points: Array | None
    rows: Array
    ratios: int

    @classmethod
    def of(cls, ranges: Ranges, ends: Ends, ratios: Sequence[float]) -> "Tried":
        """ends: of each range, ``(rows, groups)``."""
        xp = namespace(ends[0])
        scales, zero_points = zip(*(ranges.parameters(ends, ratio) for ratio in ratios), strict=True)

        def by_group(tables: Sequence[Array]) -> Array:
            return xp.permute_dims(astype(xp.concat(tables), "float32"), (1, 0))

        rows = xp.arange(ends[0].shape[0], device=device(ends[0]))
        return cls(by_group(scales), None if zero_points[0] is None else by_group(zero_points), rows, len(ratios))

    def parameters(self, group: int, choice: Array) -> tuple[Array, Array | None]:
        """Of one group, ``(rows, 1)`` each, by the number of each row's ratio."""
        xp, at = namespace(choice), choice * self.rows.shape[0] + self.rows
        zero_points = None if self.zero_points is None else xp.take(self.zero_points[group, :], at, axis=0)[:, None]
        return xp.take(self.scales[group, :], at, axis=0)[:, None], zero_points


def _best(weight: Array, ranges: Ranges, tried: Tried, moments: Array, sweeps: int, kept: float) -> Array:
    """The number of the best ratio of each range, ``(rows, groups)``. kept: factor of the off-diagonal moments."""
    xp = namespace(weight)
    args = ranges.args
    # The columns that share a scale are a small weight of their own, and its scales have one column.
    width = {"group": args.group_size, "block": (args.block_size or (0, 0))[1]}.get(args.granularity) or weight.shape[1]
    alone = args.model_copy(update={"granularity": "channel", "group_size": None}) if args.group_size else args
    rows, together = tried.rows.shape[0], height(weight.shape[0], args)

    def wrong(part: Array, group: int, choice: Array) -> Array:
        rounded = ranges.rounded_by(numerics.split(part, alone), *tried.parameters(group, choice))
        missed = numerics.join(rounded, part.shape, alone)
        missed -= part
        return missed

    best = xp.zeros((rows, weight.shape[1] // width), dtype=xp.int64, device=device(weight))
    error, behind = xp.zeros_like(rough(weight)), xp.zeros_like(weight)
    for sweep in range(sweeps):
        forth = sweep % 2 == 0
        for group in range(best.shape[1]) if forth else reversed(range(best.shape[1])):
            a, b = group * width, (group + 1) * width
            part, own = weight[:, a:b] + 0.0, rough(_shrunk(moments[a:b, a:b], kept))
            chosen = slice(0, a) if forth else slice(b, weight.shape[1])
            # Symmetric, so its rows say what its columns do; they lie together.
            others = astype(error[:, chosen] @ xp.permute_dims(rough(moments[a:b, chosen]), (1, 0)), "float32")
            both, behind[:, a:b] = 2.0 * kept * (others + behind[:, a:b]), others
            least = xp.full((rows,), float("inf"), dtype=weight.dtype, device=device(weight))
            before = best[:, group] + 0
            for step in range(tried.ratios) if sweep == 0 else (-1, 0, 1):
                choice = xp.clip(before + step, 0, tried.ratios - 1)  # all in the first sweep, where before is 0
                known = sweep > 0 and step == 0
                missed = astype(error[:, a:b], "float32") if known else wrong(part, group, choice)
                cost = rough(missed) @ own + both
                cost *= missed
                cost = xp.sum(cost, axis=1)
                cost = xp.sum(xp.reshape(cost, (-1, together)), axis=1)
                better = cost < least
                least = xp.where(better, cost, least)
                best[:, group] = xp.where(better, choice, best[:, group])
            error[:, a:b] = rough(wrong(part, group, best[:, group]))
    return best


def _shrunk(moments: Array, kept: float) -> Array:
    """``moments`` ``(features, features)`` with all but the diagonal multiplied by ``kept``."""
    if kept == 1.0:
        return moments
    xp = namespace(moments)
    off = xp.eye(moments.shape[0], dtype=moments.dtype, device=device(moments)) * (1.0 - kept)
    off += kept
    off *= moments
    return off


def best_of(weight: Array, ranges: Ranges, ratios: Sequence[float], importance: Array) -> Array:
    """``weight`` ``(rows, in)`` rounded to nearest, each range clipped by the ratio that costs the least when every
    feature is taken alone, weighed by its ``importance`` ``(in,)``."""
    xp = namespace(weight)
    values = numerics.split(weight, ranges.args)
    ends = minmax(values)
    best = ranges.rounded(values, ends, ratios[0])
    if len(ratios) > 1:
        weights = numerics.split(xp.broadcast_to(importance, weight.shape), ranges.args)
        least = xp.sum((best - values) ** 2 * weights, axis=-1, keepdims=True)
        for ratio in ratios[1:]:
            rounded = ranges.rounded(values, ends, ratio)
            cost = xp.sum((rounded - values) ** 2 * weights, axis=-1, keepdims=True)
            best = xp.where(cost < least, rounded, best)
            least = xp.minimum(cost, least)
    return numerics.join(best, weight.shape, ranges.args)
