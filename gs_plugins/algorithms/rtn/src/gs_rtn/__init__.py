"""Round to nearest: every weight to the closest code, under the scales its observer chooses. Needs no data."""

from collections.abc import Sequence

from gs_core import Algorithm, Layer, QuantizedTensor, hookimpl, numerics


class RoundToNearest(Algorithm):
    """The baseline of every other algorithm, and the fallback where no calibration token arrives."""

    @hookimpl
    def quantize(self, layers: Sequence[Layer]) -> dict[str, QuantizedTensor]:
        return {layer.name: numerics.quantize_weight(layer.view(), layer.args, layer.dtype) for layer in layers}
