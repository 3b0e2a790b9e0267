"""The stage plugin: scales for every fold of a block, then the clipping of every layer."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from gs_awq.clipping import clip
from gs_awq.moments import Moments
from gs_awq.ranges import Ranges
from gs_awq.scales import Target, search
from gs_core import (
    Accumulator,
    Algorithm,
    Block,
    ChannelScale,
    Layer,
    Needs,
    QuantizedTensor,
    Strict,
    hookimpl,
    numerics,
)
from gs_core.products import rough
from gs_schemas import QuantizationScheme

COARSE = 4
"""The scale search looks at every fourth of the clip search's ratios."""


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, int | float) else value


Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Ratio = Annotated[float, Field(gt=0.0, le=1.0)]


class Options(Strict):
    """
    smooth_alpha: the exponents that the scale search tries, or one of them: 0 none of the activations' magnitude,
        1 all of it.
    duo_scaling: divide the scales by the weights' magnitude to the power ``1 - alpha``.
    weight_clip_ratio: the parts of a range that the clip search tries, or one of them.
    sweeps: how often the clip search goes through the groups of a row.
    signed_scales: symmetric scales of up to four bits may be negative (``gs_awq.ranges``).
    shrinkage: how far the clip search moves second moments towards their diagonal, 0 to 1; ``auto`` takes
        ``features / (features + tokens)``: the fewer tokens, the less their correlations say about other text.
    """

    smooth_alpha: Annotated[tuple[Fraction, ...], BeforeValidator(_listed), Field(min_length=1)] = tuple(
        i / 20 for i in range(20)
    )
    duo_scaling: bool = True
    weight_clip_ratio: Annotated[tuple[Ratio, ...], BeforeValidator(_listed), Field(min_length=1)] = tuple(
        1 - i / 20 for i in range(10)
    )
    sweeps: int = Field(2, ge=1)
    signed_scales: bool = True
    shrinkage: Fraction | Literal["auto"] = "auto"


class AWQ(Algorithm):
    """Before another quantizer it only scales: ``[awq, gptq]`` is AWQ's scales and GPTQ's rounding.

    Layers without moments (no token reached them) are rounded to nearest.
    """

    Options = Options

    def needs(self, scheme: QuantizationScheme) -> Needs:
        return Needs(data=True, float_only=True)

    @hookimpl
    def observe(self) -> Accumulator:
        return Moments()

    @hookimpl
    def smooth(self, block: Block, layers: Sequence[Layer], observed: Mapping[str, Any]) -> list[ChannelScale]:
        options, found = self.options, []
        for fold in block.folds():
            targets = []
            for site in fold.sites:
                if site in observed:
                    seen, moments = observed[site], rough(observed[site].matrix)
                    targets += [
                        Target.of(layer, seen, moments, options.signed_scales) for layer in layers if layer.site == site
                    ]
            if targets:
                ratios = options.weight_clip_ratio[::COARSE]
                scale = search(fold, targets, options.smooth_alpha, options.duo_scaling, ratios)
                found.append(ChannelScale(fold, scale))
        return found

    @hookimpl
    def quantize(self, layers: Sequence[Layer], observed: Mapping[str, Any]) -> dict[str, QuantizedTensor]:
        return {layer.name: self._quantize(layer, observed.get(layer.site)) for layer in layers}

    def _quantize(self, layer: Layer, observed: Moments | None) -> QuantizedTensor:
        weight, args = layer.view(), layer.args
        if observed is None:
            return numerics.quantize_weight(weight, args, layer.dtype)
        options, ranges = self.options, Ranges.of(layer, self.options.signed_scales)
        shrinkage = observed.shrinkage if options.shrinkage == "auto" else options.shrinkage
        parameters = clip(
            weight, ranges, observed.matrix, options.weight_clip_ratio, options.sweeps, shrinkage=shrinkage
        )
        return numerics.quantize_with(weight, *parameters, args)
