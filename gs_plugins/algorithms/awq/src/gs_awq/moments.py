"""What is known of a site's activations: enough to tell any layer's output error without running it."""

from gs_core import Accumulator, Array, namespace
from gs_core.arrays import device
from gs_core.numerics import slices
from gs_core.products import rough

PANEL = 512
"""Rows of the matrix that are worked on at a time."""


class Moments(Accumulator):
    """Second moments ``Σ x xᵀ``, float32 ``(features, features)``, and the mean magnitude of each channel.

    An error ``E`` ``(out, features)`` in a weight costs ``‖E X‖² = tr E (Σ x xᵀ) Eᵀ`` at the layer's output, so no
    activation has to be kept. Its ``result()`` is itself: the matrix can be larger than the weights.
    """

    def __init__(self) -> None:
        self._total: Array = None
        self._magnitude: Array = None
        self._tokens = 0
        self._mirrored = False

    def update(self, x: Array) -> None:
        """Add to the lower triangle, panel by panel: half the products."""
        xp = namespace(x)
        if self._total is None:
            self._total = xp.zeros((x.shape[1], x.shape[1]), dtype=x.dtype, device=device(x))
            self._magnitude = xp.zeros_like(x[0, :])
        factor, self._mirrored = rough(x), False
        for a, b in panels(x.shape[1]):
            part = self._total[a:b, :b]  # by a name of its own: ``self._total[a:b, :b] +=`` would copy it onto itself
            part += xp.permute_dims(factor[:, a:b], (1, 0)) @ factor[:, :b]
        for rows, _ in slices(x):
            self._magnitude += xp.sum(xp.abs(x[rows, :]), axis=0)
        self._tokens += x.shape[0]

    def rescale(self, scale: Array) -> bool:
        for a, b in panels(scale.shape[0]):
            self._total[a:b, :] /= scale[a:b, None] * scale[None, :]
        self._magnitude /= scale
        return True

    def result(self) -> "Moments":
        return self

    @property
    def magnitude(self) -> Array:
        """Mean of ``|x|``, ``(features,)``."""
        return self._magnitude / self._tokens

    @property
    def diagonal(self) -> Array:
        """``Σ x²``, ``(features,)``."""
        return namespace(self._total).linalg.diagonal(self._total)

    @property
    def matrix(self) -> Array:
        """``Σ x xᵀ``, not a copy."""
        if not self._mirrored:
            self._mirror()
        return self._total

    def _mirror(self) -> None:
        """Write the lower triangle into the upper one."""
        xp, self._mirrored = namespace(self._total), True
        for a, b in panels(self._total.shape[0]):
            corner = xp.tril(self._total[a:b, a:b])
            self._total[a:b, a:b] = corner + xp.permute_dims(xp.tril(corner, k=-1), (1, 0))
            self._total[a:b, b:] = xp.permute_dims(self._total[b:, a:b], (1, 0))


def panels(size: int) -> list[tuple[int, int]]:
    """Where ranges of ``PANEL`` begin and end."""
    return [(start, min(start + PANEL, size)) for start in range(0, size, PANEL)]


def output_error(error: Array, moments: Array) -> Array:
    """``tr E M Eᵀ`` row by row: what an error ``(rows, features)`` in a weight costs at each output, ``(rows,)``.
    ``moments`` as ``rough`` gives them."""
    return namespace(error).sum((rough(error) @ moments) * error, axis=1)
