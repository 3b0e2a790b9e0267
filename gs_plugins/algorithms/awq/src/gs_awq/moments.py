"""What is known of a site's activations: enough to tell any layer's output error without running it."""

from gs_core import Array, namespace
from gs_core.moments import SecondMoments
from gs_core.numerics import slices
from gs_core.products import rough


class Moments(SecondMoments):
    """Second moments, and the mean magnitude of each channel."""

    def __init__(self) -> None:
        super().__init__()
        self._magnitude: Array = None
        self._tokens = 0
        self._mirrored = False

    def update(self, x: Array) -> None:
        super().update(x)
        xp = namespace(x)
        if self._magnitude is None:
            self._magnitude = xp.zeros_like(x[0, :])
        for rows, _ in slices(x):
            self._magnitude += xp.sum(xp.abs(x[rows, :]), axis=0)
        self._tokens += x.shape[0]
        self._mirrored = False

    def parts(self, x: Array) -> tuple[list[Array], list[Array]]:
        return [], [rough(x)]  # candidates only have to be told apart: a sixth less time

    def rescale(self, scale: Array) -> bool:
        self._magnitude /= scale
        return super().rescale(scale)

    @property
    def magnitude(self) -> Array:
        """Mean of ``|x|``, ``(features,)``."""
        return self._magnitude / self._tokens

    @property
    def shrinkage(self) -> float:
        """Weight of the diagonal in an estimate of the moments of other text: ``features / (features + tokens)``.

        Off-diagonal moments of few tokens are mostly noise. Shrinking them towards zero is the estimator of Ledoit and
        Wolf (https://doi.org/10.1016/S0047-259X(03)00096-4), here with a weight that depends on the counts alone.
        """
        features = self._magnitude.shape[0]
        return float(features / (features + self._tokens))

    @property
    def matrix(self) -> Array:
        """``Σ x xᵀ``, not a copy."""
        if not self._mirrored:
            self.mirror()
            self._mirrored = True
        return self.total


def output_error(error: Array, moments: Array) -> Array:
    """``tr E M Eᵀ`` row by row: what an error ``(rows, features)`` in a weight costs at each output, ``(rows,)``.
    ``moments`` as ``rough`` gives them."""
    return namespace(error).sum((rough(error) @ moments) * error, axis=1)
