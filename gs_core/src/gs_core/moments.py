"""Second moments of a site's activations, which tell what any error in a weight costs."""

from typing import Self

from gs_core import numerics
from gs_core.arrays import Array, device, namespace, transposed
from gs_core.interfaces import Accumulator
from gs_core.products import rough

PANEL, WIDE_PANEL = 256, 2048
"""Rows of a matrix of second moments that are worked on at a time, on a processor and elsewhere: what a few more
products cost there is less than to start them."""
TOKENS = 256
"""How many tokens a rough product sums up before its sum is rounded."""
DIRECTIONS = 16
"""In which the tokens of a batch are multiplied exactly, whatever the others may be."""


class SecondMoments(Accumulator):
    """``Σ x xᵀ``, float32 ``(features, features)``. An error ``E`` ``(out, features)`` in a weight costs ``‖E X‖² =
    tr E (Σ x xᵀ) Eᵀ`` at the layer's output, so no activation has to be kept.

    Its ``result()`` is itself: the matrix can be larger than the weights, so there is never a second one.
    """

    total: Array = None

    def __init__(self) -> None:
        self._apart: list[Array] = []
        """Few rows each, whose moments are still to be added."""

    def update(self, x: Array) -> None:
        xp, features = namespace(x), x.shape[1]
        if self.total is None:
            self.total = xp.zeros((features, features), dtype=x.dtype, device=device(x))
        common, rest = self.parts(x)
        self._add(rest)
        self._apart += common
        if len(self._apart) * DIRECTIONS >= TOKENS:
            self._join()

    def parts(self, x: Array) -> tuple[list[Array], list[Array]]:
        """Few rows, and pieces of many, ``(n, features)`` each, whose second moments add up to those of ``x``
        ``(tokens, features)``. For an algorithm to override that needs exact products, or less care than this.

        They are ``x`` itself, unless products may be rough. A rough product is rounded to as few digits as its factors
        have, so it should be small: what tokens have most in common is taken out, ``x = U Uᵀx + y`` with orthonormal
        columns of U, and summed exactly, ``xᵀx = (Uᵀx)ᵀ(Uᵀx) + yᵀy``; of what is left, some tokens at a time,
        roundings are as often up as down. U is found as in randomized factorisations (Halko et al.,
        https://arxiv.org/abs/0909.4061), by products of all tokens with a few of them.
        """
        if rough(x[:1, :]).dtype == x.dtype or x.shape[0] <= DIRECTIONS:
            return [], [x]
        xp = namespace(x)
        few = x[:: x.shape[0] // DIRECTIONS, :][:DIRECTIONS, :]
        directions = xp.linalg.qr(x @ xp.permute_dims(few, (1, 0)))[0]
        common = xp.permute_dims(directions, (1, 0)) @ x
        directions = xp.linalg.qr(x @ xp.permute_dims(common, (1, 0)))[0]
        common = xp.permute_dims(directions, (1, 0)) @ x
        slices = numerics.panels(x.shape[0], TOKENS)
        return [common], [rough(x[a:b, :] - directions[a:b, :] @ common) for a, b in slices]

    def _add(self, pieces: list[Array]) -> None:
        """The moments of each, to the lower triangle, panel by panel: half the products, none as large as the whole."""
        xp = namespace(self.total)
        for a, b in _panels(self.total):
            part = self.total[a:b, :b]  # by a name of its own: ``self.total[a:b, :b] +=`` would copy it onto itself
            for piece in pieces:
                part += xp.permute_dims(piece[:, a:b], (1, 0)) @ piece[:, :b]

    def _join(self) -> None:
        if self._apart:
            self._add([namespace(self.total).concat(self._apart)])
            self._apart = []

    def rescale(self, scale: Array) -> bool:
        self._join()
        for a, b in _panels(self.total):
            self.total[a:b, :] /= scale[a:b, None] * scale[None, :]
        return True

    def result(self) -> Self:
        return self

    @property
    def diagonal(self) -> Array:
        """``Σ x²``, ``(features,)``."""
        self._join()
        return namespace(self.total).linalg.diagonal(self.total)

    def mirror(self) -> Array:
        """The whole matrix, not a copy: what ``update`` left out is written into it."""
        self._join()
        xp = namespace(self.total)
        for a, b in _panels(self.total):
            corner = xp.tril(self.total[a:b, a:b])
            self.total[a:b, a:b] = corner + xp.permute_dims(xp.tril(corner, k=-1), (1, 0))
            self.total[a:b, b:] = transposed(self.total[b:, a:b] + 0.0)  # of a copy: what lies apart is turned slowly
        return self.total


def _panels(matrix: Array) -> list[tuple[int, int]]:
    return numerics.panels(matrix.shape[0], PANEL if str(device(matrix)) == "cpu" else WIDE_PANEL)
