"""The second moments of a site's activations, and their factorisation in the same memory."""

from collections.abc import Iterator
from dataclasses import dataclass

from gs_core import Array, namespace
from gs_core.arrays import device
from gs_core.moments import SecondMoments
from gs_core.numerics import panels
from gs_core.products import rough

SLICE = 512
"""Rows of a Hessian that are worked on at a time."""
REACH = 16.0
"""How large what a feature receives from the errors of others may be, beside its own, for that to be a rough product.
In bfloat16 each is then off by 3.4e-4 · REACH steps (root mean square), which adds 12 times the square of that, 0.04 %,
to what its rounding costs."""
COLUMNS = 1024
"""Rows of a layer whose errors are in the dtype of rough products at a time."""
SILENT = 1e-3
"""What a feature that is always zero has for a second moment, relative to the median of the others."""
PANEL, TALL = 128, 2048
"""Features in a panel of the factorisation, and rows of it that are worked on at a time: small enough for the cache,
large enough for products."""
NEAR = 16
"""Features whose errors reach each other one by one; what is further off is reached by products (``halved``)."""


class Hessian(SecondMoments):
    """Second moments of a site's activations. ``take()`` hands the matrix over, to be overwritten.

    exact: no product of it may be rough (``gs_core.products``).
    """

    def __init__(self, exact: bool = False):
        super().__init__()
        self._exact = exact

    def parts(self, x: Array) -> tuple[list[Array], list[Array]]:
        return ([], [x]) if self._exact else super().parts(x)

    def take(self) -> Array:
        total, self.total = self.mirror(), None
        return total


@dataclass(frozen=True)
class Factors:
    """A damped Hessian ``H = L D Lᵀ`` and its factors, float32.

    matrix: ``(features, features)``: L, unit lower triangular, with H above the diagonal, so that both fit into the
    memory of one. diagonal, variance: of H and D, ``(features,)``, positive. A feature's variance is what an error
    in it costs when all those taken after it make up for it as well as they can. damping: what was used.
    """

    matrix: Array
    diagonal: Array
    variance: Array
    damping: float

    def solve(self, y: Array) -> Array:
        """``H⁻¹ y``, ``(features, n)``, by substitution panel by panel."""
        xp = namespace(y)
        x, edges = y + 0.0, panels(y.shape[0], PANEL)
        for a, b in edges:
            known = self.matrix[a:b, :a] @ x[:a, :]
            x[a:b, :] = xp.linalg.solve(xp.tril(self.matrix[a:b, a:b]), x[a:b, :] - known)
        x = x / self.variance[:, None]
        for a, b in reversed(edges):
            known = xp.permute_dims(self.matrix[b:, a:b], (1, 0)) @ x[b:, :]
            corner = xp.permute_dims(xp.tril(self.matrix[a:b, a:b]), (1, 0))
            x[a:b, :] = xp.linalg.solve(corner, x[a:b, :] - known)
        return x


def factor(hessian: Array, damping: float) -> Factors:
    """Factorise ``hessian``, which is overwritten: it can be larger than the layers' weights.

    ``damping`` times the median of the diagonal is added to it, ten times more each time the factorisation fails or
    is not finite, up to the mean. Features that were always zero have no part in the median and neither give nor take
    feedback; on the diagonal they get next to nothing (``SILENT``), for it is also what scales are weighed by.
    Raises ``ValueError`` when no damping makes it positive.
    """
    xp = namespace(hessian)
    on_diagonal = xp.reshape(hessian, (-1,))[:: hessian.shape[0] + 1]
    diagonal = on_diagonal + 0.0
    middle = _median(diagonal[diagonal > 0])
    most = max(middle, float(xp.mean(diagonal)))
    edges = panels(hessian.shape[0], PANEL)
    corners = [hessian[a:b, a:b] + 0.0 for a, b in edges]
    while damping * middle <= most < float("inf"):
        damped = xp.where(diagonal > 0, diagonal, SILENT * middle * xp.ones_like(diagonal)) + damping * middle
        on_diagonal[:] = damped
        if _cholesky(hessian):
            root = on_diagonal + 0.0
            for (a, b), corner in zip(edges, corners, strict=True):
                hessian[a:b, :b] /= root[None, :b]
                hessian[a:b, a:b] = xp.tril(hessian[a:b, a:b]) + xp.triu(corner, k=1)
            return Factors(hessian, damped, root * root, damping)
        for (a, b), corner in zip(edges, corners, strict=True):  # above the diagonal it is as it was
            hessian[a:b, a:b] = corner
            hessian[b:, a:b] = xp.permute_dims(hessian[a:b, b:], (1, 0))
        damping = max(damping, 1e-4) * 10
    raise ValueError("the Hessian cannot be factorised: its values are not finite, or not of a Hessian")


def _median(x: Array) -> float:
    """Of nothing, one."""
    return float(namespace(x).sort(x)[x.shape[0] // 2]) if x.shape[0] else 1.0


def _cholesky(matrix: Array) -> bool:
    """Put the Cholesky factor on and below the diagonal, panel by panel; False when there is none.

    The library's own would need a second matrix. Almost all of the work is in products of panels, of few different
    sizes: libraries keep a program for each.
    """
    xp, size = namespace(matrix), matrix.shape[0]
    for a, b in panels(size, PANEL):
        for rows in _slices(a, size):
            part = matrix[rows, a:b]
            for before, after in panels(a, 2 * SLICE):
                part -= matrix[rows, before:after] @ xp.permute_dims(matrix[a:b, before:after], (1, 0))
        try:
            corner = xp.linalg.cholesky(matrix[a:b, a:b])
            inverse = xp.permute_dims(xp.linalg.inv(corner), (1, 0))
        except (RuntimeError, ValueError, ArithmeticError):  # LinAlgError is one of these in every namespace
            return False
        if not bool(xp.isfinite(xp.sum(corner) + xp.sum(inverse))):
            return False
        matrix[a:b, a:b] = corner
        for rows in _slices(b, size):
            matrix[rows, a:b] = matrix[rows, a:b] @ inverse
    return True


def _slices(start: int, stop: int) -> list[slice]:
    return [slice(start + a, start + b) for a, b in panels(stop - start, TALL)]


def received(shares: Array, errors: Array, own: Array) -> Array:
    """``shares @ errors``, float32 ``(members, rows)``: what features receive from the errors ``(features, rows)`` of
    others, by ``shares`` ``(members, features)``; ``own``: the share that each has for itself, ``(members,)``. Beside a
    channel of huge activations others reach far, and the product is exact."""
    xp, factor = namespace(shares), rough(shares)
    if factor is shares or not xp.mean((xp.linalg.vector_norm(shares, axis=1) / own) ** 2) <= REACH**2:
        return shares @ errors
    found = xp.empty((shares.shape[0], errors.shape[1]), dtype=xp.float32, device=device(shares))
    for a, b in panels(errors.shape[1], COLUMNS):
        found[:, a:b] = factor @ rough(errors[:, a:b])
    return found


def halved(size: int, start: int = 0) -> Iterator[tuple[int, int, int]]:
    """How to go through ``size`` features of which each owes something to all after it: ``(start, middle, stop)``,
    products of what is before ``middle`` with what is behind it, and between them, where ``middle`` is ``stop``, up
    to ``NEAR`` features one by one. Half of all is owed in one product, each half is the same problem again."""
    stop = start + size
    if size <= NEAR:
        yield start, stop, stop
        return
    middle = start + max(1, size // (2 * NEAR)) * NEAR
    yield from halved(middle - start, start)
    yield start, middle, stop
    yield from halved(stop - middle, middle)
