"""``alpha: auto``: at each fold the alpha whose layers compute best, activations and weights both quantized.

The paper chooses one alpha for a whole model by trying a few; what suits one site may harm another.
"""

from collections.abc import Callable, Mapping, Sequence

from gs_core import Array, Fold, Layer, namespace
from gs_core.arrays import device
from gs_core.measuring import Measured, Seen

ALPHAS = tuple(i / 20 for i in range(21))
USUAL, MARGIN = 0.5, 0.75
"""The paper's alpha stands unless another leaves no more than this part of its error: a smaller saving at one site's
outputs is no saving to the model for sure."""
STEPS = 64
"""Scales are powers of two to a multiple of 1/64: the last bit of a power, which libraries round differently, would
decide between two alphas that are as good."""


def search(
    fold: Fold, layers: Mapping[str, Sequence[Layer]], seen: Mapping[str, Seen], scale: Callable[[float], Array]
) -> float:
    """The alpha with the least error.

    Args:
        layers, seen: by site.
        scale: gives the scale ``(channels,)`` of an alpha.
    """
    measured = [Measured.of(layers[site], seen[site]) for site in layers]

    def cost(alpha: float) -> float:
        expanded = fold.expand(on_grid(scale(alpha)))
        return sum(site.error(expanded) for site in measured)

    costs = {alpha: cost(alpha) for alpha in ALPHAS}
    best = min(costs, key=costs.__getitem__)
    return best if costs[best] <= MARGIN * costs[USUAL] else USUAL


def on_grid(scale: Array) -> Array:
    """The nearest ``2 ** (k / STEPS)`` of each element ``(channels,)``."""
    xp = namespace(scale)
    steps = xp.round(xp.log2(scale) * STEPS)
    first, last = int(xp.min(steps)), int(xp.max(steps))
    powers = xp.asarray([2.0 ** (k / STEPS) for k in range(first, last + 1)], dtype=scale.dtype, device=device(scale))
    return xp.take(powers, xp.astype(steps - first, xp.int64), axis=0)
