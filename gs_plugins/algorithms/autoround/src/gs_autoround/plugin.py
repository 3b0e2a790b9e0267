"""The stage plugin: options, the statistics that scales start from, and what goes into the report."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from gs_core import (
    Accumulator,
    Algorithm,
    Array,
    Block,
    Data,
    Layer,
    LayerInfo,
    Needs,
    QuantizedTensor,
    Strict,
    hookimpl,
    namespace,
)
from gs_core.guidance import Distance
from gs_core.hookspecs import Record
from gs_schemas import QuantizationScheme

CURVE = 20
"""Points of a loss curve in the report."""


class Options(Strict):
    """
    steps: of gradient descent in each block; 0 learns nothing and leaves the scales and codes it would start from.
    batch_size: samples in one step.
    learning_rate: the first step of an offset, in steps of its scale; None is ``3 / steps``. Later ones fall linearly
        to zero.
    guided: weigh errors of what the block returns by what they cost the model's predictions (``gs_core.guidance``).
    importance: weigh errors by the mean square of each input feature when the scales to start from are searched, and
        move the offsets of large features by less. Without it, and with 0 steps, no data is needed.
    bfloat16: compute the block in bfloat16 while it learns. Faster where the processor has it.
    seed: of the order in which samples are seen.
    """

    steps: int = Field(200, ge=0)
    batch_size: int = Field(1, gt=0)
    learning_rate: float | None = Field(None, gt=0.0)
    guided: bool = True
    importance: bool = True
    bfloat16: bool = False
    seed: int = Field(0, ge=0)


class Power(Accumulator):
    """Mean square of each input feature, float32 ``(features,)``."""

    def __init__(self) -> None:
        self._total: Array = None
        self._tokens = 0

    def update(self, x: Array) -> None:
        here = namespace(x).sum(x * x, axis=0)
        self._total = here if self._total is None else self._total + here
        self._tokens += int(x.shape[0])

    def rescale(self, scale: Array) -> bool:
        self._total = self._total / (scale * scale)
        return True

    def result(self) -> Array:
        return self._total / self._tokens


class AutoRound(Algorithm):
    """Layers that no token reached keep the roundings they start from: an earlier algorithm's, or those to nearest."""

    Options = Options
    refines = True

    def unsupported(self, layer: LayerInfo, scheme: QuantizationScheme) -> str | None:
        if scheme.weights is not None and not scheme.weights.number.is_integer:
            return f"offsets are learned for integers, not for '{scheme.weights.format}'; use rtn"
        return None

    def needs(self, scheme: QuantizationScheme) -> Needs:
        learns = self.options.steps > 0
        return Needs(
            data=learns or self.options.importance,
            gradient=learns,
            float_stream=learns,
            loss=learns and self.options.guided,
        )

    @hookimpl
    def observe(self) -> Accumulator | None:
        return Power() if self.options.importance else None

    @hookimpl
    def quantize(
        self, block: Block, layers: Sequence[Layer], observed: Mapping[str, Any], data: Data, record: Record
    ) -> dict[str, QuantizedTensor]:
        from gs_autoround.learning import Reconstruction, learn
        from gs_autoround.rounding import Rounding

        chosen = self.options
        roundings = [Rounding(layer, observed.get(layer.site), data.start.get(layer.name)) for layer in layers]
        if not chosen.steps:
            return {rounding.name: rounding.tensor() for rounding in roundings}
        rate = chosen.learning_rate or 3 / chosen.steps
        example = roundings[0].weight.detach()
        distance = Distance.guided(block.name, data, example) if chosen.guided else Distance()
        reconstruction = Reconstruction(block, roundings, data, chosen.bfloat16, distance)
        seed = (chosen.seed, block.index)
        tensors, losses = learn(reconstruction, chosen.steps, chosen.batch_size, rate, seed)
        every = -(-len(losses) // CURVE)
        record(loss=[float(f"{loss:.4g}") for loss in losses[::every]], last=float(f"{losses[-1]:.4g}"))
        return tensors
