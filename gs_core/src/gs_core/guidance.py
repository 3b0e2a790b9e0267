"""What errors cost a model's predictions: with ``g`` the gradient of its loss where they are made, nearly ``(e · g)²``,
so all of them together ``Σ e G eᵀ`` with ``G = Σ g gᵀ``. Tseng et al., "Model-Preserving Adaptive Rounding",
https://arxiv.org/abs/2505.22988; Kim et al., "GuidedQuant", https://arxiv.org/abs/2505.07004."""

from dataclasses import dataclass
from math import prod
from typing import Self

from gs_core.arrays import Array, from_raw, like, namespace
from gs_core.comparing import check_finite
from gs_core.interfaces import Data

LEAST, LARGEST = 0.1, 4.0
"""What is added to the eigenvalues of G, and where they end, relative to their mean: a few thousand tokens know little
of directions that hardly matter, and what matters beyond all others would leave the rest to chance."""
BATCHES = 8
"""Of what a block returns, evenly spread: enough to know how large its channels are."""
SMALLEST = 1e-3
"""A channel is taken for at least as large as the median of all, times this."""
TINY = 1e-30


def bounded(total: Array, what: str) -> tuple[Array, Array] | None:
    """Eigenvalues ``(n,)`` and eigenvectors ``(n, n)``, a column each, of second moments of gradients: the values
    within bounds, their mean one. ``None`` where all are zero, so that the predictions do not depend on it.

    Raises ``CalibrationError`` that says ``what`` where a gradient is no number.
    """
    xp = namespace(total)
    check_finite(total, what)
    mean = float(xp.mean(xp.linalg.diagonal(total)))
    if mean <= 0:
        return None
    values, vectors = xp.linalg.eigh(total / mean)
    values = xp.clip(values, min=0.0, max=LARGEST) + LEAST
    return values / xp.mean(values), vectors


@dataclass(frozen=True)
class Distance:
    """How far what a learned block returns is from what the float block does, ``(..., hidden)`` both: the squared error
    of each token relative to the token's square, averaged over tokens. The norm that follows sees all tokens at one
    size, so that none counts for more because it is large. Differentiable.

    size: by what channels are divided, ``(hidden,)``. root: ``G = R Rᵀ`` of the channels so divided.
    """

    size: Array = None
    root: Array = None

    @classmethod
    def guided(cls, block: str, data: Data, example: Array) -> Self:
        """By what errors cost the predictions, in the library of ``example``. Channels are divided by their own size
        first, which makes bounds on G mean the same for all of them. All errors cost the same where ``data`` has no
        gradients, or those of fewer tokens than there are channels, which know next to nothing, and where the
        predictions do not depend on the block."""
        if not data.gradients:
            return cls()
        *tokens, channels = data.gradients[0][1]["hidden"].shape
        if len(data.gradients) * prod(tokens) < channels:
            return cls()
        size = _size(data, example)
        total: Array = 0.0
        for _, gradient in data.gradients:
            g = _rows(gradient["hidden"], example) * size
            total = total + namespace(g).permute_dims(g, (1, 0)) @ g
        found = bounded(total, f"{block}: the gradient of the model's loss at what it returns")
        if found is None:
            return cls()
        values, vectors = found
        return cls(size, vectors * namespace(values).sqrt(values)[None, :])

    def __call__(self, found: Array, wanted: Array) -> Array:
        xp = namespace(found)
        error = found - wanted
        if self.root is not None:
            error, wanted = (error / self.size) @ self.root, wanted / self.size
        return xp.mean(xp.sum(error * error, axis=-1) / (xp.sum(wanted * wanted, axis=-1) + TINY))


def _size(data: Data, example: Array) -> Array:
    """Root mean square of each channel of what the float block returns, ``(hidden,)``."""
    xp, squares = namespace(example), []
    for number in range(0, len(data.targets), max(1, len(data.targets) // BATCHES)):
        x = _rows(data.targets[number]["hidden"], example)
        squares.append(xp.mean(x * x, axis=0))
    size = xp.sqrt(xp.mean(xp.stack(squares), axis=0))
    middle = xp.sort(size)[size.shape[0] // 2]
    return xp.clip(size, min=float(middle) * SMALLEST + TINY)


def _rows(raw: Array, example: Array) -> Array:
    x = like(from_raw(raw), example)
    return namespace(x).reshape(x, (-1, x.shape[-1]))
