"""What a scale would do to the layers of a site, told from a sample: no block has to run for each that is tried."""

from dataclasses import dataclass

from gs_core import numerics
from gs_core.arrays import Array, namespace
from gs_core.interfaces import Accumulator, Layer
from gs_core.observers import Range, Sample, limits_of, static_input
from gs_schemas import QuantizationArgs

TOKENS = 512
"""Tokens of a site to measure with."""
WEIGHTS = 2**19
"""Weights of a layer to measure with: whole rows, evenly spread."""


@dataclass(frozen=True)
class Seen:
    """Of a site: some ``tokens`` ``(count, features)``, and both ends of all tokens' values ``(features,)``."""

    tokens: Array
    low: Array
    high: Array

    @property
    def maxima(self) -> Array:
        """Largest magnitude of each channel."""
        xp = namespace(self.low)
        return xp.maximum(xp.abs(self.low), xp.abs(self.high))


class Watcher(Accumulator):
    """Collects ``Seen``."""

    def __init__(self) -> None:
        self._ends, self._sample = Range(), Sample(TOKENS)

    def update(self, x: Array) -> None:
        self._ends.update(x)
        self._sample.update(x)

    def rescale(self, scale: Array) -> bool:
        return self._sample.rescale(scale) and self._ends.rescale(scale)

    def result(self) -> Seen:
        return Seen(self._sample.result(), *self._ends.result())


@dataclass(frozen=True)
class Measured:
    """A layer and what arrives there; of its weight only some rows ``(rows, features)``."""

    layer: Layer
    seen: Seen
    weight: Array

    @classmethod
    def of(cls, layer: Layer, seen: Seen) -> "Measured":
        weight = layer.view()
        if layer.args.granularity in ("group", "channel"):  # else rows share a scale, and stay together
            weight = weight[:: max(1, weight.shape[0] * weight.shape[1] // WEIGHTS), :]
        return cls(layer, seen, weight)

    def error(self, scale: Array, shift: Array | None = None) -> float:
        """Squared error of a token's output when it arrives as ``(x - shift) / scale``, ``(features,)`` each, and both
        it and the weight are quantized."""
        layer, inputs = self.layer, self.layer.scheme.inputs
        centred = self.seen.tokens if shift is None else self.seen.tokens - shift
        tokens = centred / scale
        if inputs is not None:
            static = () if inputs.dynamic else self._static(tokens, scale, shift, inputs)
            tokens = numerics.fake_quantize(tokens, inputs, *static)
        weight = numerics.dequantize(numerics.quantize_weight(self.weight * scale, layer.args, layer.dtype))
        wrong = tokens @ weight.T - centred @ self.weight.T
        return float(namespace(wrong).mean(wrong * wrong)) * layer.shape[0]

    def _static(
        self, tokens: Array, scale: Array, shift: Array | None, args: QuantizationArgs
    ) -> tuple[Array, Array | None]:
        """The parameters that the line will choose, as far as the sample tells; it includes both ends."""
        xp = namespace(tokens)
        limits = limits_of(args)
        ends = [end if shift is None else end - shift for end in (self.seen.low, self.seen.high)]
        limits.update(xp.concat([tokens, *(xp.expand_dims(end / scale, axis=0) for end in ends)]))
        static = static_input(limits, tokens, args, numerics.scale_dtype(args, self.layer.dtype))
        return static.scale, static.zero_point
