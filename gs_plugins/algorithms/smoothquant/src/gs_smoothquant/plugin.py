"""The stage plugin: a scale for every fold of a block."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from gs_core import (
    Accumulator,
    Algorithm,
    Array,
    Block,
    ChannelScale,
    Fold,
    Layer,
    LayerInfo,
    LinearMap,
    Needs,
    Site,
    SiteTransform,
    Strict,
    hookimpl,
    namespace,
)
from gs_core.interfaces import Transform
from gs_core.measuring import HeldOutWatcher, Watcher
from gs_core.observers import ChannelMaxima
from gs_schemas import QuantizationScheme
from gs_smoothquant.automatic import USUAL, on_grid, search

SMALLEST = 1e-5


def _known(alpha: Any) -> Any:
    if alpha != "auto" and not (isinstance(alpha, int | float) and 0 <= alpha <= 1):
        raise ValueError(f"got {alpha!r}; give a number from 0 to 1, or auto")
    return alpha


class Options(Strict):
    """
    alpha: how much of the difficulty moves to the weights; 0 none of it, 1 all of it, ``auto`` what each site's layers
        compute best with.
    online: smooth the sites that have no producer to fold into as well; their scales are then part of the checkpoint,
        for formats and engines that know them (Golden Stick's).
    """

    alpha: Annotated[float | Literal["auto"], BeforeValidator(_known)] = 0.5
    online: bool = False


class SmoothQuant(Algorithm):
    """Smooths every site whose producer can absorb the scale, and the others where ``online``."""

    Options = Options

    def needs(self, scheme: QuantizationScheme) -> Needs:
        return Needs(data=True, float_only=True)

    def leaves_online(self, layer: LayerInfo, hidden: int) -> Mapping[str, str]:
        return {"scale": "set online: false"} if self.options.online else {}

    @hookimpl
    def observe(self, site: Site, scheme: QuantizationScheme) -> Accumulator | None:
        if scheme.inputs is None:
            return None
        if self.options.alpha != "auto":
            return ChannelMaxima()
        return Watcher() if scheme.inputs.dynamic else HeldOutWatcher()

    @hookimpl
    def smooth(self, block: Block, layers: Sequence[Layer], observed: Mapping[str, Any]) -> list[Transform]:
        weights: dict[str, list[Layer]] = {}
        for layer in layers:
            if layer.site in observed:
                weights.setdefault(layer.site, []).append(layer)
        found: list[Transform] = []
        for fold in block.folds():
            if any(site in weights for site in fold.sites):
                found.append(ChannelScale(fold, self._scale(fold, observed, weights)))
        folded = {site for transform in found for site in transform.sites}
        for site in weights if self.options.online else ():
            if site not in folded:
                alone = Fold("", (site,), block.sites[site].features)
                found.append(SiteTransform(site, LinearMap(scale=self._scale(alone, observed, weights))))
        return found

    def _scale(self, fold: Fold, seen: Mapping[str, Any], weights: Mapping[str, Sequence[Layer]]) -> Array:
        """One scale for each free channel: over all the sites and layers that must share it, ``(channels,)``."""
        layers = {site: weights[site] for site in fold.sites if site in weights}
        observed = {site: seen[site] for site in layers}
        weight = fold.reduce_max([_column_maxima(layer) for site in layers for layer in layers[site]])
        if self.options.alpha != "auto":
            return _balanced(fold.reduce_max(list(observed.values())), weight, self.options.alpha)
        rest = {site: x.held_out for site, x in observed.items()}
        maxima, maxima_of_rest = (fold.reduce_max([x.maxima for x in each.values()]) for each in (observed, rest))
        alpha = search(fold, layers, rest, lambda alpha: _balanced(maxima_of_rest, weight, alpha))
        scale = _balanced(maxima, weight, alpha)
        return scale if alpha == USUAL else on_grid(scale)


def _balanced(activation: Array, weight: Array, alpha: float) -> Array:
    """The scale of each channel from the largest magnitudes of its activations and weights, ``(channels,)`` all."""
    xp = namespace(activation)
    activation, weight = xp.clip(activation, min=SMALLEST), xp.clip(weight, min=SMALLEST)
    return xp.clip(activation**alpha / weight ** (1.0 - alpha), min=SMALLEST)


def _column_maxima(layer: Layer) -> Array:
    found = ChannelMaxima()
    found.update(layer.view())
    return found.result()
