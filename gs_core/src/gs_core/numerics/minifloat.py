"""Floating-point codes: the nearest number that so many exponent and mantissa bits can say, ties to even.

Formats: OCP OFP8 1.0 and MX 1.0; see ``gs_schemas.numbers``.
"""

from gs_core.arrays import Array, astype, namespace
from gs_schemas.numbers import NumberFormat

FP8 = {"fp8_e4m3": "float8_e4m3fn", "fp8_e5m2": "float8_e5m2"}


def nearest(x: Array, number: NumberFormat) -> Array:
    """``x`` rounded to the format, in the dtype of ``x``; what lies beyond its largest number becomes that."""
    xp = namespace(x)
    x = xp.clip(x, number.minimum, number.maximum)
    name = FP8.get(number.name)
    if name and (hasattr(xp, name) or hasattr(x, "astype")):
        return xp.astype(astype(x, name), x.dtype)
    # The exponent may be one too small just above a power of two: the finer grid has the same nearest number there.
    smallest = 2 - 2 ** (number.exponent_bits - 1)
    exponent = xp.floor(xp.log2(xp.clip(xp.abs(x), min=2.0**smallest)))
    step = 2.0 ** (exponent - number.mantissa_bits)
    return xp.round(x / step) * step
