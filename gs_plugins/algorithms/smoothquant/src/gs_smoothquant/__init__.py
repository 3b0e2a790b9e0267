"""SmoothQuant: move the difficulty of outlier channels from activations into weights.

Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models",
https://arxiv.org/abs/2211.10438, equation 4: ``s_j = max|X_j|^alpha / max|W_j|^(1 - alpha)``.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from gs_core import Accumulator, Algorithm, Array, Block, ChannelScale, Fold, Layer, Site, Strict, hookimpl, namespace
from gs_schemas import QuantizationScheme

SMALLEST = 1e-5


class Options(Strict):
    """``alpha``: how much of the difficulty moves to the weights; 0 none of it, 1 all of it."""

    alpha: float = Field(0.5, ge=0.0, le=1.0)


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
        return ChannelMaxima() if scheme.inputs is not None else None

    @hookimpl
    def smooth(self, block: Block, layers: Sequence[Layer], observed: Mapping[str, Any]) -> list[ChannelScale]:
        weights: dict[str, list[Layer]] = {}
        for layer in layers:
            weights.setdefault(layer.site, []).append(layer)
        transforms = []
        for fold in block.folds():
            sites = [site for site in fold.sites if site in observed and site in weights]
            if sites:
                transforms.append(ChannelScale(fold, self._scale(fold, sites, observed, weights)))
        return transforms

    def _scale(
        self, fold: Fold, sites: list[str], observed: Mapping[str, Any], weights: Mapping[str, list[Layer]]
    ) -> Array:
        """One scale for each free channel: over all the sites and layers that must share it, ``(channels,)``."""
        xp = namespace(observed[sites[0]])
        activation = fold.reduce_max([observed[site] for site in sites])
        weight = fold.reduce_max([_column_maxima(layer.weight()) for site in sites for layer in weights[site]])
        activation, weight = xp.clip(activation, min=SMALLEST), xp.clip(weight, min=SMALLEST)
        alpha = self.options.alpha
        return xp.clip(activation**alpha / weight ** (1.0 - alpha), min=SMALLEST)


def _column_maxima(weight: Array) -> Array:
    xp = namespace(weight)
    return xp.max(xp.abs(weight), axis=0)
