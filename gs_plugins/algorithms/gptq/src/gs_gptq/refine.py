"""Codes and scales once more, each as good as it can be while all others stand.

The first pass rounds a feature knowing only those before it; now all are known. With all else fixed the loss ``e H eᵀ``
is a parabola in one feature's error and in one group's scale, so no step makes it worse. Coordinate descent on the
codes, as in QuantEase (Behdin et al., https://arxiv.org/abs/2309.01885), started from GPTQ's.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from gs_core import Array, namespace
from gs_core.arrays import astype, device
from gs_core.numerics import panels
from gs_gptq.grid import Grid
from gs_gptq.hessian import PANEL, Factors, halved, received

BLOCK = 128
"""Features of a block, where they are not divided into groups."""
TOGETHER = 512
"""Features of the blocks that one gradient is computed for."""


def refine(codes: Array, errors: Array, factors: Factors, groups: Sequence[int], grid: Grid) -> None:
    """One sweep over ``codes``, their ``errors`` (float32; both ``(features, rows)``) and the scales of ``grid``, all
    in place.

    groups: of each feature. A group is a block, so that the gradient its codes need serves its scale, too; what is
    not divided into groups keeps its scale.
    """
    sweep = _Sweep(codes, errors, factors, groups, grid, refit=len(set(groups)) > 1)
    together: list[list[int]] = []
    for block in sweep.blocks():
        if together and sum(map(len, together)) + len(block) > TOGETHER:
            sweep.through(together)
            together = []
        together.append(block)
    sweep.through(together)


@dataclass(frozen=True)
class _Sweep:
    """What ``refine`` was given, and whether scales are looked at, too."""

    codes: Array
    errors: Array
    factors: Factors
    groups: Sequence[int]
    grid: Grid
    refit: bool

    def blocks(self) -> list[list[int]]:
        """Features that are taken together, each block within one group."""
        found = []
        for group in sorted(set(self.groups)):
            members = [feature for feature, its in enumerate(self.groups) if its == group]
            step = len(members) if self.refit else BLOCK
            found += [members[start:stop] for start, stop in panels(len(members), step)]
        return found

    def through(self, blocks: Sequence[Sequence[int]]) -> None:
        """One block after another; what changes in one is added to the gradient of those after it."""
        xp, place = namespace(self.codes), device(self.codes)
        members = [feature for block in blocks for feature in block]
        hessian = _rows(self.factors, members)
        own = xp.take(self.factors.diagonal, xp.asarray(members, device=place), axis=0)
        gradient = received(hessian, self.errors, own)
        start = 0
        for block in blocks:
            stop = start + len(block)
            columns = xp.take(hessian[start:, :], xp.asarray(block, device=place), axis=1)
            change = self._block(block, columns[: len(block), :], gradient[start:stop, :])
            later = gradient[stop:, :]
            later += received(columns[len(block) :, :], change, own[stop:])
            start = stop

    def _block(self, block: Sequence[int], hessian: Array, gradient: Array) -> Array:
        """How the errors of some features of one group change, ``(members, rows)``. hessian: between them. gradient:
        ``hessian @ errors`` of all features, for these; used up."""
        xp, grid, group = namespace(hessian), self.grid, self.groups[block[0]]
        steps = grid.steps(xp.take(self.codes, xp.asarray(block, device=device(hessian)), axis=0), group)
        change = xp.zeros_like(steps)
        if self.refit:
            added, pulled = _refit(steps, hessian, gradient, grid, group)
            change -= added * steps
            gradient -= added * pulled
        # All of them have the same scale, so they are rounded in its steps.
        scale, diagonal = grid.scale[group, :], xp.linalg.diagonal(hessian)[:, None]
        wanted, pull = gradient / diagonal, hessian / diagonal
        wanted /= scale
        wanted += steps
        held, sought = xp.unstack(steps), xp.unstack(wanted)
        pulls = xp.unstack(pull[:, :, None], axis=1)
        for start, middle, stop in halved(len(block)):
            if middle < stop:
                later = wanted[middle:stop, :]
                later += pull[middle:stop, start:middle] @ steps[start:middle, :]
                continue
            for i in range(start, stop):
                codes, moved, later = grid.nearest(sought[i], group), held[i], wanted[i + 1 : stop, :]
                self.codes[block[i], :] = astype(codes, grid.code_dtype)
                moved -= grid.steps(codes, group)  # what was held is now what is lost
                later += pulls[i][i + 1 : stop, :] * moved
        steps *= scale
        change += steps
        for feature, added in zip(block, xp.unstack(change), strict=True):
            error = self.errors[feature, :]
            error += added
        return change


def _refit(steps: Array, corner: Array, gradient: Array, grid: Grid, group: int) -> tuple[Array, Array]:
    """Give each row's scale of the group the storable value nearest to the least loss; returns what was added,
    ``(rows,)``, and what the gradient loses for each unit of it. A scale that would vanish, change its sign, or for its
    rounding gain nothing stays."""
    xp = namespace(steps)
    pulled = corner @ steps
    slope, bend = xp.sum(steps * gradient, axis=0), xp.sum(steps * pulled, axis=0)
    scale = grid.scale[group, :]
    wanted = grid.storable(scale + slope / xp.where(bend > 0, bend, xp.ones_like(bend)))
    change = wanted - scale
    better = (bend > 0) & (wanted * scale > 0) & (change * (change * bend - 2 * slope) < 0)
    change = xp.where(better, change, xp.zeros_like(change))
    grid.scale[group, :] = scale + change
    return change, pulled


def _rows(factors: Factors, members: Sequence[int]) -> Array:
    """Whole rows of the Hessian, ``(members, features)``, of which only what is above the diagonal is kept."""
    xp, place, inside = namespace(factors.matrix), device(factors.matrix), sorted(members)
    at = xp.asarray(inside, device=place)
    rows = xp.take(factors.matrix, at, axis=0)
    for a, b in panels(rows.shape[1], PANEL):  # what a few panels need stays in the cache
        first, last = bisect_left(inside, a), bisect_left(inside, b)
        columns = xp.permute_dims(xp.take(factors.matrix[a:b, :], at[first:], axis=1), (1, 0))
        feature, own = xp.arange(a, b, device=place)[None, :], at[first:last, None]
        corner = xp.where(feature > own, rows[first:last, a:b], columns[: last - first, :])
        rows[first:last, a:b] = xp.where(feature == own, factors.diagonal[None, a:b], corner)
        rows[last:, a:b] = columns[last - first :, :]
    number = {feature: row for row, feature in enumerate(inside)}
    return xp.take(rows, xp.asarray([number[feature] for feature in members], device=place), axis=0)
