"""The arithmetic of GPTQ, in the form with one factorisation and no inverse.

With ``H = L D Lᵀ``, L unit lower triangular, the output error of a row is ``Σ_i D_i (e_i + Σ_{j>i} e_j L_ji)²`` for
the rounding errors ``e = w - q`` of its features. Taking the features from the last to the first, each is therefore
best rounded from ``w_i + Σ_{j>i} e_j L_ji``. This is the LDLQ form of the same algorithm (Chee et al., "QuIP",
https://arxiv.org/abs/2307.13304, theorem 6 shows that they are equal): errors are kept instead of updated weights,
so the work between blocks of features is one matrix product.
"""

from collections.abc import Callable, Sequence

from gs_core import Array, namespace
from gs_core.arrays import astype, device
from gs_gptq.grid import Grid
from gs_gptq.hessian import NEAR, Factors
from gs_gptq.refine import refine

Choose = Callable[[Array, int], tuple[Array, Array | None]]
"""Scale and zero point, ``(rows, 1)`` each, for a group's weights ``(rows, group_size)`` and its first feature."""


def solve(
    rest: Array,
    factors: Factors,
    groups: Sequence[int],
    grid: Grid,
    block_size: int,
    choose: Choose | None = None,
    sweeps: int = 0,
) -> Array:
    """Codes ``(rows, features)``, int8 or uint8, of weights taken from the last feature to the first.

    rest: the weights, float32 ``(features, rows)``, so that every step reads and writes whole rows; each makes way for
    its own error. factors: of the features in the same order. groups: the group of each feature. choose: pick each
    group's grid when the group is reached, from its weights as the feedback has left them; without it the grid stands.
    sweeps: how many times all codes are looked at once more (``refine``).
    """
    xp = namespace(rest)
    feedback = factors.matrix
    features = rest.shape[0]
    dtype = grid.code_dtype
    codes = xp.empty(rest.shape, dtype=getattr(xp, dtype), device=device(rest))
    for stop in range(features, 0, -block_size):
        start = max(0, stop - block_size)
        fed = xp.zeros_like(rest[start:stop, :])
        if stop < features:
            fed = xp.permute_dims(feedback[stop:, start:stop], (1, 0)) @ rest[stop:, :]
        known = stop
        for i in reversed(range(start, stop)):
            if known - i > NEAR:  # of the block's own errors, too, those further back come by one product
                earlier = fed[: i + 1 - start, :]
                earlier += xp.permute_dims(feedback[i + 1 : known, start : i + 1], (1, 0)) @ rest[i + 1 : known, :]
                known = i + 1
            if choose is not None and (i + 1 == features or groups[i] != groups[i + 1]):
                first = i + 1 - sum(1 for group in groups[: i + 1] if group == groups[i])
                grid.set(groups[i], *choose(xp.permute_dims(_left(rest, feedback, first, i + 1), (1, 0)), first))
            wanted = rest[i, :] + fed[i - start, :]
            if i + 1 < known:
                wanted = wanted + feedback[i + 1 : known, i] @ rest[i + 1 : known, :]
            found, rounded = grid.round(wanted, groups[i])
            codes[i, :] = astype(found, dtype)
            rest[i, :] -= rounded
    for _ in range(sweeps):
        refine(codes, rest, factors, groups, grid, block_size)
    return xp.permute_dims(codes, (1, 0))


def _left(rest: Array, feedback: Array, start: int, stop: int) -> Array:
    """The features from ``start`` to ``stop`` as the errors behind them leave them, ``(features, rows)``.

    Each makes up for those behind it that moved, too, rounded or not: hence a triangular system, not a product.
    """
    xp = namespace(rest)
    arrived = xp.permute_dims(feedback[stop:, start:stop], (1, 0)) @ rest[stop:, :]
    among = xp.permute_dims(xp.tril(feedback[start:stop, start:stop]), (1, 0))
    return rest[start:stop, :] + xp.linalg.solve(among, arrived)
