"""The arithmetic of GPTQ, in the form with one factorisation and no inverse.

With ``H = M D Mᵀ``, M unit upper triangular, the output error of a row is ``Σ_i D_i (e_i + Σ_{j<i} e_j M_ji)²``
for the rounding errors ``e = w - q`` of its features. Taking the features in order, each is therefore best rounded
from ``w_i + Σ_{j<i} e_j M_ji``. This is the LDLQ form of the same algorithm (Chee et al., "QuIP",
https://arxiv.org/abs/2307.13304, theorem 6 shows that they are equal): errors are kept instead of updated weights,
so the work between blocks of features is one matrix product.
"""

from collections.abc import Callable, Sequence

from gs_core import Array, namespace
from gs_core.arrays import astype
from gs_core.numerics import decode, encode
from gs_schemas import QuantizationArgs

MOST_DAMPING = 1.0


def factor(hessian: Array, damping: float) -> tuple[Array, Array, float]:
    """``M`` (unit upper triangular) and ``D`` (its positive diagonal) of the damped Hessian.

    ``damping`` times the mean of the diagonal is added to it, ten times more each time the factorisation fails or
    is not finite. Features that were always zero get a diagonal of one: they neither give nor take feedback.
    Returns the damping that worked. Raises ``ValueError`` when none does.
    """
    xp = namespace(hessian)
    diagonal = xp.linalg.diagonal(hessian)
    dead = diagonal <= 0
    mean = xp.mean(diagonal)
    eye = xp.eye(hessian.shape[0], dtype=hessian.dtype, device=hessian.device)
    while damping <= MOST_DAMPING:
        damped = hessian + eye * xp.where(dead, xp.ones_like(diagonal), xp.zeros_like(diagonal) + damping * mean)
        upper = _upper_cholesky(damped)
        if upper is not None:
            scale = xp.linalg.diagonal(upper)
            return upper / scale[None, :], scale * scale, damping
        damping = max(damping, 1e-4) * 10
    raise ValueError("the Hessian cannot be factorised: its values are not finite, or not of a Hessian")


def _upper_cholesky(matrix: Array) -> Array | None:
    """``U`` with ``matrix = U Uᵀ``, upper triangular, or None when there is none."""
    xp = namespace(matrix)
    try:
        lower = xp.linalg.cholesky(xp.flip(matrix))
    except (RuntimeError, ValueError, ArithmeticError):  # LinAlgError is one of these in every namespace
        return None
    upper = xp.flip(lower)
    return upper if bool(xp.all(xp.isfinite(upper))) else None


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
    """Codes, float32 ``(rows, features)``, for ``weight`` of that shape, its features in the order to be taken.

    feedback: ``M`` of ``factor``, in the same order. groups: the group of each feature. choose: pick each group's
    grid when its first feature comes, from the weights as the feedback has left them; without it the grid stands.
    """
    xp = namespace(weight)
    features = weight.shape[1]
    # Features first, so that every step reads and writes whole rows.
    original = _transposed(weight)
    errors, codes = xp.zeros_like(original), xp.zeros_like(original)
    for start in range(0, features, block_size):
        stop = min(start + block_size, features)
        current = original[start:stop, :]
        if start:
            current = current + xp.permute_dims(feedback[:start, start:stop], (1, 0)) @ errors[:start, :]
        for i in range(start, stop):
            if choose is not None and (i == 0 or groups[i] != groups[i - 1]):
                count = sum(1 for group in groups[i:] if group == groups[i])
                left = _left(original, feedback, errors, i, i + count)
                grid.set(groups[i], *choose(xp.permute_dims(left, (1, 0)), i))
            wanted = current[i - start, :]
            if i > start:
                wanted = wanted + feedback[start:i, i] @ errors[start:i, :]
            codes[i, :], rounded = grid.round(wanted, groups[i])
            errors[i, :] = original[i, :] - rounded
    return xp.permute_dims(codes, (1, 0))


def _left(original: Array, feedback: Array, errors: Array, start: int, stop: int) -> Array:
    """The features from ``start`` to ``stop`` as the errors before them leave them, ``(features, rows)``.

    Each makes up for those before it that moved, too, rounded or not: hence a triangular system, not a product.
    """
    xp = namespace(original)
    arrived = xp.permute_dims(feedback[:start, start:stop], (1, 0)) @ errors[:start, :]
    among = xp.permute_dims(feedback[start:stop, start:stop], (1, 0))
    return original[start:stop, :] + xp.linalg.solve(among, arrived)


def _transposed(x: Array) -> Array:
    """A float32 copy of the transpose, laid out row by row."""
    xp = namespace(x)
    return xp.permute_dims(astype(x, "float32"), (1, 0)) + xp.zeros((1, 1), dtype=xp.float32, device=x.device)
