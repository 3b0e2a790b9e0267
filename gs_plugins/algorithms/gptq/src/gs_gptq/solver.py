"""The arithmetic of GPTQ, in the form with one factorisation and no inverse.

With ``H = L D Lᵀ``, L unit lower triangular, the output error of a row is ``Σ_i D_i (e_i + Σ_{j>i} e_j L_ji)²`` for
the rounding errors ``e = w - q`` of its features. Taking the features from the last to the first, each is therefore
best rounded from ``w_i + Σ_{j>i} e_j L_ji``. This is the LDLQ form of the same algorithm (Chee et al., "QuIP",
https://arxiv.org/abs/2307.13304, theorem 6 shows that they are equal): errors are kept instead of updated weights,
so what one half of the features owes the other is one matrix product, and each half is the same problem again.
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
    block_size: features that are halved until they are few; what those behind them add is held for so many at once.
    sweeps: how many times all codes are looked at once more (``refine``).
    """
    xp = namespace(rest)
    feedback = factors.matrix
    features = rest.shape[0]
    codes = xp.empty(rest.shape, dtype=getattr(xp, grid.code_dtype), device=device(rest))

    def take(start: int, stop: int, fed: Array) -> None:
        """The features from ``stop`` down to ``start``; fed: what the errors from ``stop`` on add to them."""
        if stop - start > NEAR:
            middle = stop - max(1, (stop - start) // (2 * NEAR)) * NEAR
            take(middle, stop, fed[middle - start :, :])
            earlier = fed[: middle - start, :]
            earlier += xp.permute_dims(feedback[middle:stop, start:middle], (1, 0)) @ rest[middle:stop, :]
            take(start, middle, earlier)
            return
        found = xp.empty_like(fed)
        for i in reversed(range(start, stop)):
            if choose is not None and (i + 1 == features or groups[i] != groups[i + 1]):
                first = i + 1 - sum(1 for group in groups[: i + 1] if group == groups[i])
                grid.set(groups[i], *choose(xp.permute_dims(_left(rest, feedback, first, i + 1), (1, 0)), first))
            wanted = rest[i, :] + fed[i - start, :]
            if i + 1 < stop:
                wanted += feedback[i + 1 : stop, i] @ rest[i + 1 : stop, :]
            found[i - start, :], rounded = grid.round(wanted, groups[i])
            rest[i, :] -= rounded
        codes[start:stop, :] = astype(found, grid.code_dtype)

    for stop in range(features, 0, -block_size):
        start = max(0, stop - block_size)
        take(start, stop, xp.permute_dims(feedback[stop:, start:stop], (1, 0)) @ rest[stop:, :])
    for _ in range(sweeps):
        refine(codes, rest, factors, groups, grid)
    return xp.permute_dims(codes, (1, 0))


def _left(rest: Array, feedback: Array, start: int, stop: int) -> Array:
    """The features from ``start`` to ``stop`` as the errors behind them leave them, ``(features, rows)``.

    Each makes up for those behind it that moved, too, rounded or not: hence a triangular system, not a product.
    """
    xp = namespace(rest)
    arrived = xp.permute_dims(feedback[stop:, start:stop], (1, 0)) @ rest[stop:, :]
    among = xp.permute_dims(xp.tril(feedback[start:stop, start:stop]), (1, 0))
    return rest[start:stop, :] + xp.linalg.solve(among, arrived)
