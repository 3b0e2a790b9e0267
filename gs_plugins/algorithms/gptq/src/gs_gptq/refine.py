"""Codes and scales once more, each as good as it can be while all others stand.

The first pass rounds a feature knowing only those before it; now all are known. With all else fixed the loss ``e H eᵀ``
is a parabola in one feature's error and in one group's scale, so no step makes it worse. Coordinate descent on the
codes, as in QuantEase (Behdin et al., https://arxiv.org/abs/2309.01885), started from GPTQ's.
"""

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
        members = xp.asarray([feature for block in blocks for feature in block], device=place)
        hessian = _rows(self.factors, members)
        gradient = received(hessian, self.errors, xp.take(self.factors.diagonal, members, axis=0))
        start = 0
        for block in blocks:
            stop = start + len(block)
            columns = xp.take(hessian[start:, :], xp.asarray(block, device=place), axis=1)
            change = self._block(block, columns[: len(block), :], gradient[start:stop, :])
            later = gradient[stop:, :]
            later += columns[len(block) :, :] @ change
            start = stop

    def _block(self, block: Sequence[int], hessian: Array, gradient: Array) -> Array:
        """How the errors of some features of one group change, ``(members, rows)``. hessian: between them. gradient:
        ``hessian @ errors`` of all features, for these; used up."""
        xp, grid, group = namespace(hessian), self.grid, self.groups[block[0]]
        codes = xp.take(self.codes, xp.asarray(block, device=device(hessian)), axis=0)
        steps = grid.steps(codes, group)
        change = xp.zeros_like(steps)
        if self.refit:
            added, pulled = _refit(steps, hessian, gradient, grid, group)
            change -= added * steps
            gradient -= added * pulled
        diagonal = xp.linalg.diagonal(hessian)[:, None]
        before, pull = steps * grid.scale[group, :], hessian / diagonal
        wanted = before + gradient / diagonal
        moved, found = xp.empty_like(wanted), xp.empty_like(wanted)
        for start, middle, stop in halved(len(block)):
            if middle < stop:
                later = wanted[middle:stop, :]
                later += pull[middle:stop, start:middle] @ moved[start:middle, :]
                continue
            for i in range(start, stop):
                found[i, :], after = grid.round(wanted[i, :], group)
                moved[i, :] = before[i, :] - after
                later = wanted[i + 1 : stop, :]
                later += pull[i + 1 : stop, i, None] * moved[i, :]
        change += moved
        found = astype(found, grid.code_dtype)
        for i, feature in enumerate(block):
            self.errors[feature, :] += change[i, :]
            self.codes[feature, :] = found[i, :]
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


def _rows(factors: Factors, members: Array) -> Array:
    """Whole rows of the Hessian, ``(members, features)``, of which only what is above the diagonal is kept."""
    xp = namespace(members)
    rows, own = xp.take(factors.matrix, members, axis=0), members[:, None]
    for a, b in panels(rows.shape[1], PANEL):  # what a few panels need stays in the cache
        feature = xp.arange(a, b, device=device(members))[None, :]
        column = xp.permute_dims(xp.take(factors.matrix[a:b, :], members, axis=1), (1, 0))
        column = xp.where(feature == own, factors.diagonal[None, a:b], column)
        rows[:, a:b] = xp.where(feature > own, rows[:, a:b], column)
    return rows
