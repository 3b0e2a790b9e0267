"""Codes and scales once more, each as good as it can be while all others stand.

The first pass rounds a feature knowing only those before it; now all are known. With all else fixed the loss ``e H eᵀ``
is a parabola in one feature's error and in one group's scale, so no step makes it worse. Coordinate descent on the
codes, as in QuantEase (Behdin et al., https://arxiv.org/abs/2309.01885), started from GPTQ's.
"""

from collections.abc import Sequence

from gs_core import Array, namespace
from gs_core.arrays import astype, device
from gs_gptq.grid import Grid
from gs_gptq.hessian import NEAR, Factors, panels


def refine(codes: Array, errors: Array, factors: Factors, groups: Sequence[int], grid: Grid, block_size: int) -> None:
    """One sweep over ``codes``, their ``errors`` (float32; both ``(features, rows)``) and the scales of ``grid``, all
    in place.

    groups: of each feature. A group is a block, so that the gradient its codes need serves its scale, too; what is
    not divided into groups is taken ``block_size`` features at a time, and keeps its scale.
    """
    grouped = len(set(groups)) > 1
    for group in sorted(set(groups)):
        members = [feature for feature, its in enumerate(groups) if its == group]
        for start, stop in panels(len(members), len(members) if grouped else block_size):
            _block(members[start:stop], group, codes, errors, factors, grid, grouped)


def _block(
    block: Sequence[int], group: int, codes: Array, errors: Array, factors: Factors, grid: Grid, refit: bool
) -> None:
    xp = namespace(codes)
    members = xp.asarray(block, device=device(codes))
    hessian = _rows(factors, members)
    corner, diagonal = xp.take(hessian, members, axis=1), xp.take(factors.diagonal, members, axis=0)
    gradient = hessian @ errors
    mine, steps = xp.take(errors, members, axis=0), grid.steps(xp.take(codes, members, axis=0), group)
    if refit:
        change = _refit(steps, corner, gradient, grid, group)
        mine = mine - change * steps
        gradient = gradient - change * (corner @ steps)
    before, moved = steps * grid.scale[group, :], xp.zeros_like(gradient)
    for start, stop in panels(len(block), NEAR):
        for i in range(start, stop):
            slope = gradient[i, :]
            if i > start:
                slope = slope + corner[i, start:i] @ moved[start:i, :]
            found, after = grid.round(before[i, :] + slope / diagonal[i], group)
            moved[i, :] = before[i, :] - after
            codes[block[i], :] = astype(found, grid.code_dtype)
        later = gradient[stop:, :]
        later += corner[stop:, start:stop] @ moved[start:stop, :]
    mine = mine + moved
    for i, feature in enumerate(block):
        errors[feature, :] = mine[i, :]


def _refit(steps: Array, corner: Array, gradient: Array, grid: Grid, group: int) -> Array:
    """Give each row's scale of the group the storable value nearest to the least loss; returns what was added,
    ``(rows,)``. A scale that would vanish, change its sign, or for its rounding gain nothing stays."""
    xp = namespace(steps)
    slope, bend = xp.sum(steps * gradient, axis=0), xp.sum(steps * (corner @ steps), axis=0)
    scale = grid.scale[group, :]
    wanted = grid.storable(scale + slope / xp.where(bend > 0, bend, xp.ones_like(bend)))
    change = wanted - scale
    better = (bend > 0) & (wanted * scale > 0) & (change * (change * bend - 2 * slope) < 0)
    change = xp.where(better, change, xp.zeros_like(change))
    grid.scale[group, :] = scale + change
    return change


def _rows(factors: Factors, members: Array) -> Array:
    """Whole rows of the Hessian, ``(members, features)``, of which only what is above the diagonal is kept."""
    xp = namespace(members)
    right = xp.take(factors.matrix, members, axis=0)
    left = xp.permute_dims(xp.take(factors.matrix, members, axis=1), (1, 0))
    feature = xp.arange(right.shape[1], device=device(members))[None, :]
    own = xp.where(feature == members[:, None], factors.diagonal[None, :], left)
    return xp.where(feature > members[:, None], right, own)
