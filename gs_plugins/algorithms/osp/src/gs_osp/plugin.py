"""The stage plugin: a shift where biases can take it, and a scale by search, for every fold of a block."""

from collections.abc import Mapping, Sequence
from typing import Any

from gs_core import Accumulator, Algorithm, Array, Block, ChannelScale, Fold, Layer, Site, hookimpl, namespace
from gs_core.measuring import Measured, Seen, Watcher
from gs_schemas import QuantizationScheme

STEPS, LARGEST = 60, 2.0**10
"""Thresholds to try: this many in even ratios, from the largest magnitude of any channel down to a part of it."""


class OutlierSuppressionPlus(Algorithm):
    """Treats every site whose producer can absorb the scale."""

    @hookimpl
    def observe(self, site: Site, scheme: QuantizationScheme) -> Accumulator | None:
        return Watcher() if scheme.inputs is not None else None

    @hookimpl
    def smooth(self, block: Block, layers: Sequence[Layer], observed: Mapping[str, Any]) -> list[ChannelScale]:
        found = []
        for fold in block.folds():
            seen = {site: observed[site] for site in fold.sites if site in observed}
            measured = [Measured.of(layer, seen[layer.site]) for layer in layers if layer.site in seen]
            if measured:
                found.append(_search(fold, list(seen.values()), measured))
        return found


def _search(fold: Fold, seen: Sequence[Seen], measured: Sequence[Measured]) -> ChannelScale:
    """The middle of each channel, and the scale of the threshold with which the layers compute best."""
    low, high = _ends(fold, seen)
    xp = namespace(low)
    shift = (low + high) / 2 if fold.shifts else None
    magnitude = (high - low) / 2 if fold.shifts else xp.maximum(xp.abs(low), xp.abs(high))
    spread = None if shift is None else fold.expand(shift)

    def cost(scale: Array) -> float:
        expanded = fold.expand(scale)
        return sum(layer.error(expanded, spread) for layer in measured)

    return ChannelScale(fold, min(_scales(magnitude), key=cost), shift)


def _ends(fold: Fold, seen: Sequence[Seen]) -> tuple[Array, Array]:
    """Smallest and largest value of each of the producer's channels, wherever it arrives, ``(channels,)``."""
    return -fold.reduce_max([-site.low for site in seen]), fold.reduce_max([site.high for site in seen])


def _scales(magnitude: Array) -> list[Array]:
    """``max(1, magnitude / threshold)`` for each threshold, none at all first; channels below it stay as they are."""
    xp = namespace(magnitude)
    top = float(xp.max(magnitude))
    if top == 0:
        return [xp.ones_like(magnitude)]
    thresholds = [top * LARGEST ** (-i / STEPS) for i in range(STEPS + 1)]
    return [xp.clip(magnitude / threshold, min=1.0) for threshold in thresholds]
