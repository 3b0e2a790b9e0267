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
from gs_core.numerics import code_dtype, decode, encode
from gs_schemas import QuantizationArgs

MOST_DAMPING = 1.0
PANEL = 256
"""Features in a panel of the factorisation: small enough for the cache, large enough for its products."""


def factor(hessian: Array, damping: float) -> tuple[Array, Array, float]:
    """``L`` (unit lower triangular) and ``D`` (its positive diagonal) of the damped Hessian.

    ``damping`` times the mean of the diagonal is added to it, ten times more each time the factorisation fails or
    is not finite. Features that were always zero get a diagonal of one: they neither give nor take feedback.
    ``hessian`` is overwritten, and becomes ``L``: it can be larger than the layers' weights. Returns the damping
    that worked, too. Raises ``ValueError`` when none does.
    """
    xp = namespace(hessian)
    on_diagonal = xp.reshape(hessian, (-1,))[:: hessian.shape[0] + 1]
    diagonal = on_diagonal + 0.0
    mean = xp.mean(diagonal)
    edges = panels(hessian.shape[0], PANEL)
    corners = [hessian[a:b, a:b] + 0.0 for a, b in edges]
    while damping <= MOST_DAMPING:
        on_diagonal[:] = xp.where(diagonal > 0, diagonal + damping * mean, xp.ones_like(diagonal))
        if _cholesky(hessian):
            root = on_diagonal + 0.0
            for a, b in edges:
                hessian[a:b, :] = xp.tril(hessian[a:b, :] / root[None, :], k=a)
            return hessian, root * root, damping
        for (a, b), corner in zip(edges, corners, strict=True):  # above the diagonal it is as it was
            hessian[a:b, a:b] = corner
            hessian[b:, a:b] = xp.permute_dims(hessian[a:b, b:], (1, 0))
        damping = max(damping, 1e-4) * 10
    raise ValueError("the Hessian cannot be factorised: its values are not finite, or not of a Hessian")


def _cholesky(matrix: Array) -> bool:
    """Put the Cholesky factor on and below the diagonal, panel by panel; False when there is none.

    The library's own would need a second matrix. Almost all of the work is in the products of panels.
    """
    xp = namespace(matrix)
    edges = panels(matrix.shape[0], PANEL)
    for number, (a, b) in enumerate(edges):
        try:
            corner = xp.linalg.cholesky(matrix[a:b, a:b])
            inverse = xp.linalg.inv(corner)
        except (RuntimeError, ValueError, ArithmeticError):  # LinAlgError is one of these in every namespace
            return False
        if not bool(xp.isfinite(xp.sum(corner) + xp.sum(inverse))):
            return False
        matrix[a:b, a:b] = corner
        below = matrix[b:, a:b] @ xp.permute_dims(inverse, (1, 0))
        matrix[b:, a:b] = below
        for top, bottom in edges[number + 1 :]:
            product = below[top - b : bottom - b, :] @ xp.permute_dims(below[: bottom - b, :], (1, 0))
            matrix[top:bottom, b:bottom] -= product
    return True


def panels(size: int, step: int) -> list[tuple[int, int]]:
    """Where ranges of ``step`` begin and end."""
    return [(start, min(start + step, size)) for start in range(0, size, step)]


class Grid:
    """Scales and zero points laid out for the solver: one row for each group, ``(groups, rows)`` float32."""

    def __init__(self, scale: Array, zero_point: Array | None, args: QuantizationArgs):
        self.args = args
        self.scale = _transposed(scale)
        self.zero_point = None if zero_point is None else _transposed(zero_point)

    def set(self, group: int, scale: Array, zero_point: Array | None) -> None:
        """Replace one group's, ``(rows, 1)`` each."""
        self.scale[group, :] = _transposed(scale)[0, :]
        if self.zero_point is not None and zero_point is not None:
            self.zero_point[group, :] = _transposed(zero_point)[0, :]

    def round(self, x: Array, group: int) -> tuple[Array, Array]:
        """Codes of one feature ``(rows,)``, and what they stand for."""
        scale = self.scale[group, :]
        zero_point = None if self.zero_point is None else self.zero_point[group, :]
        codes = encode(x, scale, zero_point, self.args)
        return codes, decode(codes, scale, zero_point)


Choose = Callable[[Array, int], tuple[Array, Array | None]]
"""Scale and zero point, ``(rows, 1)`` each, for a group's weights ``(rows, group_size)`` and its first feature."""


def solve(
    weight: Array, feedback: Array, groups: Sequence[int], grid: Grid, block_size: int, choose: Choose | None = None
) -> Array:
    """Codes ``(rows, features)``, int8 or uint8, for a float32 ``weight`` of that shape, taken from its last feature
    to its first.

    feedback: ``L`` of ``factor``, of the features in the same order. groups: the group of each feature. choose: pick
    each group's grid when the group is reached, from its weights as the feedback has left them; without it the grid
    stands.
    """
    xp = namespace(weight)
    features = weight.shape[1]
    # Features first, so that every step reads and writes whole rows. A weight makes way for its own error.
    rest = _transposed(weight)
    dtype = code_dtype(grid.args)
    codes = xp.empty(rest.shape, dtype=getattr(xp, dtype), device=device(rest))
    for stop in range(features, 0, -block_size):
        start = max(0, stop - block_size)
        fed = xp.zeros_like(rest[start:stop, :])
        if stop < features:
            fed = xp.permute_dims(feedback[stop:, start:stop], (1, 0)) @ rest[stop:, :]
        for i in reversed(range(start, stop)):
            if choose is not None and (i + 1 == features or groups[i] != groups[i + 1]):
                first = i + 1 - sum(1 for group in groups[: i + 1] if group == groups[i])
                grid.set(groups[i], *choose(xp.permute_dims(_left(rest, feedback, first, i + 1), (1, 0)), first))
            wanted = rest[i, :] + fed[i - start, :]
            if i + 1 < stop:
                wanted = wanted + feedback[i + 1 : stop, i] @ rest[i + 1 : stop, :]
            found, rounded = grid.round(wanted, groups[i])
            codes[i, :] = astype(found, dtype)
            rest[i, :] -= rounded
    return xp.permute_dims(codes, (1, 0))


def _left(rest: Array, feedback: Array, start: int, stop: int) -> Array:
    """The features from ``start`` to ``stop`` as the errors behind them leave them, ``(features, rows)``.

    Each makes up for those behind it that moved, too, rounded or not: hence a triangular system, not a product.
    """
    xp = namespace(rest)
    arrived = xp.permute_dims(feedback[stop:, start:stop], (1, 0)) @ rest[stop:, :]
    among = xp.permute_dims(feedback[start:stop, start:stop], (1, 0))
    return rest[start:stop, :] + xp.linalg.solve(among, arrived)


def _transposed(x: Array) -> Array:
    """A float32 copy of the transpose, laid out row by row."""
    xp = namespace(x)
    return xp.permute_dims(astype(x, "float32"), (1, 0)) + xp.zeros((1, 1), dtype=xp.float32, device=device(x))
