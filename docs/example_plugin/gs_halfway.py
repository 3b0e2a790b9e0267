"""Round to nearest under a scale halfway from the full range's to the one that suits the codes best.

The codes of plain rounding, ``c``, fit the weights ``w`` of a group best, in least squares, under the scale
``<w, c> / <c, c>``. That clips the largest weights a little; this goes only part of the way, and rounds again.
"""

from pydantic import Field

from gs_core import Algorithm, Layer, QuantizedTensor, Strict, hookimpl, namespace, numerics
from gs_core.arrays import astype


class Options(Strict):
    """``ratio``: how far to go, from 0 (plain rounding) to 1 (least squares)."""

    ratio: float = Field(0.5, ge=0.0, le=1.0)


class Halfway(Algorithm):
    """Needs no data, and its error is never above plain rounding's."""

    Options = Options

    @hookimpl
    def quantize(self, layers: list[Layer]) -> dict[str, QuantizedTensor]:
        return {layer.name: self.round(layer) for layer in layers}

    def round(self, layer: Layer) -> QuantizedTensor:
        weight, args = layer.weight(), layer.args
        xp = namespace(weight)
        first = numerics.quantize_weight(weight, args, layer.dtype)
        full = astype(first.scale, "float32")
        values = numerics.split(weight, args)  # (rows, groups, elements): one scale for each group
        steps = numerics.split(numerics.dequantize(first), args) / full[:, :, None]
        power = xp.sum(steps * steps, axis=-1)
        best = xp.where(power > 0, xp.sum(values * steps, axis=-1) / xp.clip(power, min=1.0), full)
        scale = astype(full + self.options.ratio * (best - full), numerics.scale_dtype(args, layer.dtype))
        return numerics.quantize_with(weight, scale, first.zero_point, args)
