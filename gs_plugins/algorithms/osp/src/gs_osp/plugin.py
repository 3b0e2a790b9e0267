"""The stage plugin: a shift where biases can take it, and a scale by search, for every fold of a block."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from gs_core import Accumulator, Algorithm, Array, Block, ChannelScale, Fold, Layer, Site, hookimpl, namespace
from gs_core.measuring import Measured, Seen, Watcher
from gs_schemas import QuantizationScheme

STEPS, LARGEST = 60, 2.0**10
"""Thresholds: this many in even ratios, from the largest magnitude of any channel down to a part of it."""
STRIDE = 3
"""Every third threshold is tried first, then those around the best."""


class OutlierSuppressionPlus(Algorithm):
    """Treats every site whose producer can absorb the scale."""

    @hookimpl
    def observe(self, site: Site, scheme: QuantizationScheme) -> Accumulator | None:
        return Watcher() if scheme.inputs is not None else None

    @hookimpl
    def smooth(self, block: Block, layers: Sequence[Layer], observed: Mapping[str, Any]) -> list[ChannelScale]:
        sites: dict[str, list[Layer]] = {}
        for layer in layers:
            if layer.site in observed:
                sites.setdefault(layer.site, []).append(layer)
        folds = [(fold, {site: sites[site] for site in fold.sites if site in sites}) for fold in block.folds()]
        return [_search(fold, layers, observed) for fold, layers in folds if layers]


def _search(fold: Fold, layers: Mapping[str, Sequence[Layer]], observed: Mapping[str, Seen]) -> ChannelScale:
    """The middle of each channel, and the scale of the threshold that leaves the layers the least error. ``layers`` by
    site."""
    low, high = _ends(fold, [observed[site] for site in fold.sites if site in observed])
    xp = namespace(low)
    shift = (low + high) / 2 if fold.shifts else None
    magnitude = (high - low) / 2 if fold.shifts else xp.maximum(xp.abs(low), xp.abs(high))
    spread = None if shift is None else fold.expand(shift)
    measured = [Measured.of(layers[site], observed[site], spread) for site in layers]
    scales = _scales(magnitude)

    @cache
    def cost(number: int) -> float:
        expanded = fold.expand(scales[number])
        return sum(site.error(expanded) for site in measured)

    best = min(range(0, len(scales), STRIDE), key=cost)
    near = range(max(0, best - STRIDE + 1), min(len(scales), best + STRIDE))
    return ChannelScale(fold, scales[min(near, key=cost)], shift)


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
