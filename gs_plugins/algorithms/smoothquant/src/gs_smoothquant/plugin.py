"""The stage plugin: a scale for every fold of a block."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from gs_core import Accumulator, Algorithm, Array, Block, ChannelScale, Fold, Layer, Site, Strict, hookimpl, namespace
from gs_core.measuring import Watcher
from gs_schemas import QuantizationScheme
from gs_smoothquant.automatic import search

SMALLEST = 1e-5


def _known(alpha: Any) -> Any:
    if alpha != "auto" and not (isinstance(alpha, int | float) and 0 <= alpha <= 1):
        raise ValueError(f"got {alpha!r}; give a number from 0 to 1, or auto")
    return alpha


class Options(Strict):
    """``alpha``: how much of the difficulty moves to the weights; 0 none of it, 1 all of it, ``auto`` what each site's
    layers compute best with."""

    alpha: Annotated[float | Literal["auto"], BeforeValidator(_known)] = 0.5


class ChannelMaxima(Accumulator):
    """Largest magnitude of each channel, float32 ``(features,)``."""

    maxima: Array = None

    def update(self, x: Array) -> None:
        xp = namespace(x)
        here = xp.max(xp.abs(x), axis=0)
        self.maxima = here if self.maxima is None else xp.maximum(self.maxima, here)

    def rescale(self, scale: Array) -> bool:
        self.maxima = self.maxima / scale
        return True

    def result(self) -> Array:
        return self.maxima


class SmoothQuant(Algorithm):
    """Smooths every site whose producer can absorb the scale."""

    Options = Options

    @hookimpl
    def observe(self, site: Site, scheme: QuantizationScheme) -> Accumulator | None:
        if scheme.inputs is None:
            return None
        return Watcher() if self.options.alpha == "auto" else ChannelMaxima()

    @hookimpl
    def smooth(self, block: Block, layers: Sequence[Layer], observed: Mapping[str, Any]) -> list[ChannelScale]:
        weights: dict[str, list[Layer]] = {}
        for layer in layers:
            weights.setdefault(layer.site, []).append(layer)
        transforms = []
        for fold in block.folds():
            sites = [site for site in fold.sites if site in observed and site in weights]
            if sites:
                found = self._scale(fold, {s: observed[s] for s in sites}, {s: weights[s] for s in sites})
                transforms.append(ChannelScale(fold, found))
        return transforms

    def _scale(self, fold: Fold, observed: Mapping[str, Any], layers: Mapping[str, Sequence[Layer]]) -> Array:
        """One scale for each free channel: over all the sites and layers that must share it, ``(channels,)``."""
        auto = self.options.alpha == "auto"
        activation = fold.reduce_max([seen.maxima if auto else seen for seen in observed.values()])
        weight = fold.reduce_max([_column_maxima(layer.weight()) for site in layers for layer in layers[site]])
        xp = namespace(activation)
        activation, weight = xp.clip(activation, min=SMALLEST), xp.clip(weight, min=SMALLEST)

        def scale(alpha: float) -> Array:
            return xp.clip(activation**alpha / weight ** (1.0 - alpha), min=SMALLEST)

        return search(fold, layers, observed, scale) if auto else scale(self.options.alpha)


def _column_maxima(weight: Array) -> Array:
    xp = namespace(weight)
    return xp.max(xp.abs(weight), axis=0)
