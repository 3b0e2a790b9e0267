"""From a clipped range to a scale, and weights rounded with it."""

from dataclasses import dataclass

from gs_core import Array, Layer, namespace, numerics
from gs_core.arrays import astype
from gs_core.numerics import scale_from_range
from gs_schemas import QuantizationArgs

Ends = tuple[Array, Array]
"""Smallest and largest value of each range, ``(rows, groups)`` each."""
NARROW = 4
"""Bits up to which a step more on one side matters."""


@dataclass(frozen=True)
class Ranges:
    """The numbers of a layer's weight, ``dtype`` what its scales are stored in.

    signed: a symmetric scale of few bits may be negative. Codes reach one step further down than up; where the
    value of largest magnitude is positive, a negative scale gives that step to it.
    """

    args: QuantizationArgs
    dtype: str
    signed: bool

    @classmethod
    def of(cls, layer: Layer, signed: bool) -> "Ranges":
        args = layer.args
        narrow = args.symmetric and args.number.kind == "int" and args.bits <= NARROW
        return cls(args, numerics.scale_dtype(args, layer.dtype), signed and narrow)

    def parameters(self, ends: Ends, ratio: float | Array) -> tuple[Array, Array | None]:
        """Scales and zero points ``(rows, groups)`` for a part of each range."""
        low, high = ends
        scale, zero_point = scale_from_range(low * ratio, high * ratio, self.args, self.dtype)
        return namespace(low).where(high > -low, -scale, scale) if self.signed else scale, zero_point

    def rounded(self, values: Array, ends: Ends, ratio: float | Array) -> Array:
        """Weights ``(rows, groups, elements)`` to nearest, each range clipped to a part of it."""
        scale, zero_point = self.parameters(ends, ratio)
        return self.rounded_by(values, astype(scale, "float32"), zero_point)

    def rounded_by(self, values: Array, scale: Array, zero_point: Array | None) -> Array:
        """The same by scales and zero points ``(rows, groups)``, float32."""
        xp = namespace(values)
        scale = xp.expand_dims(scale, axis=-1)
        zero_point = None if zero_point is None else xp.expand_dims(zero_point, axis=-1)
        return numerics.rounded(values, scale, zero_point, self.args)
