"""The arithmetic of GPTQ, in the form with one factorisation and no inverse.

With ``H = L D Lᵀ``, L unit lower triangular, the output error of a row is ``Σ_i D_i (e_i + Σ_{j>i} e_j L_ji)²`` for
the rounding errors ``e = w - q`` of its features. Taking the features from the last to the first, each is therefore
best rounded from ``w_i + Σ_{j>i} e_j L_ji``. This is the LDLQ form of the same algorithm (Chee et al., "QuIP",
https://arxiv.org/abs/2307.13304, theorem 6 shows that they are equal): errors are kept instead of updated weights,
so what one half of the features owes the other is one matrix product, and each half is the same problem again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gs_core import Array, namespace
from gs_core.arrays import astype, device
from gs_gptq.grid import Grid
from gs_gptq.guided import Coupling, refine_together
from gs_gptq.hessian import Factors, halved, received
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
    coupled: Sequence[Coupling] = (),
) -> Array:
    """Codes ``(rows, features)``, int8 or uint8, of weights taken from the last feature to the first.

    rest: the weights, float32 ``(features, rows)``, so that every step reads and writes whole rows; each makes way for
    its own error. factors: of the features in the same order. groups: the group of each feature. choose: pick each
    group's grid when the group is reached, from its weights as the feedback has left them; without it the grid stands.
    block_size: features that are halved until they are few; what those behind them add is held for so many at once.
    sweeps: how many times all codes are looked at once more (``refine``). coupled: rows that make up for each other's
    errors then (``gs_gptq.guided``).
    """
    xp = namespace(rest)
    features, feedback = rest.shape[0], factors.matrix
    codes = xp.empty(rest.shape, dtype=getattr(xp, grid.code_dtype), device=device(rest))
    problem = _Problem(rest, codes, feedback, groups, grid, choose)
    for stop in range(features, 0, -block_size):
        start = max(0, stop - block_size)
        behind = xp.permute_dims(feedback[stop:, start:stop], (1, 0))
        fed = received(behind, rest[stop:, :], xp.ones_like(factors.variance[start:stop]))
        for nearest, at, before in halved(stop - start):  # counted from ``stop``
            first, middle, last = stop - before, stop - at, stop - nearest
            if first == middle:
                problem.take(first, last, fed[first - start : last - start, :])
            else:
                part = fed[first - start : middle - start, :]
                shares = xp.permute_dims(feedback[middle:last, first:middle], (1, 0))
                part += received(shares, rest[middle:last, :], xp.ones_like(factors.variance[first:middle]))
    for _ in range(sweeps):
        if coupled:
            refine_together(codes, rest, factors, groups, grid, coupled)
        else:
            refine(codes, rest, factors, groups, grid)
    return xp.permute_dims(codes, (1, 0))


@dataclass(frozen=True)
class _Problem:
    """What ``solve`` was given. feedback: below its diagonal, what each error adds to the features before it."""

    rest: Array
    codes: Array
    feedback: Array
    groups: Sequence[int]
    grid: Grid
    choose: Choose | None

    def take(self, start: int, stop: int, fed: Array) -> None:
        """A few features, from ``stop`` down to ``start``; fed: what those from ``stop`` on add to them, used up."""
        xp, found = namespace(fed), []
        errors, arrived = xp.unstack(self.rest[start:stop, :]), xp.unstack(fed)
        shares = xp.unstack(self.feedback[start:stop, start:stop, None])
        for i in reversed(range(stop - start)):
            if self.choose is not None:
                self._set_grid(start + i, self.choose)
            error, earlier = errors[i], fed[:i, :]
            codes, rounded = self.grid.round(error + arrived[i], self.groups[start + i])
            found.append(codes)
            error -= rounded
            earlier += shares[i][:i, :] * error
        self.codes[start:stop, :] = astype(xp.stack(found[::-1]), self.grid.code_dtype)

    def _set_grid(self, last: int, choose: Choose) -> None:
        """That of the group whose features end here, where one does: as those behind it have left it."""
        group, xp = self.groups[last], namespace(self.rest)
        if last + 1 < len(self.groups) and group == self.groups[last + 1]:
            return
        first = last + 1 - sum(1 for other in self.groups[: last + 1] if other == group)
        left = _left(self.rest, self.feedback, first, last + 1)
        self.grid.set(group, *choose(xp.permute_dims(left, (1, 0)), first))


def _left(rest: Array, feedback: Array, start: int, stop: int) -> Array:
    """The features from ``start`` to ``stop`` as the errors behind them leave them, ``(features, rows)``.

    Each makes up for those behind it that moved, too, rounded or not: hence a triangular system, not a product.
    """
    xp = namespace(rest)
    arrived = xp.permute_dims(feedback[stop:, start:stop], (1, 0)) @ rest[stop:, :]
    among = xp.permute_dims(xp.tril(feedback[start:stop, start:stop]), (1, 0))
    return rest[start:stop, :] + xp.linalg.solve(among, arrived)
