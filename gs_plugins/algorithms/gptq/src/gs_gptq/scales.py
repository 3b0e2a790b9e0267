"""Scales, and their signs."""

from gs_core import Array, namespace, numerics
from gs_core.arrays import astype, dtype_name
from gs_schemas import QuantizationArgs

WIDEST = 4
"""Bits up to which the one code that has no opposite is worth a sign."""


def weight_params(
    weight: Array, args: QuantizationArgs, model_dtype: str, importance: Array | None
) -> tuple[Array, Array | None]:
    """``gs_core.numerics.weight_params``, but narrow symmetric scales may be negative.

    A signed integer reaches one step further down than up: int2 from -2 to 1. Where the value of largest magnitude
    is positive, a negative scale gives it that step. To whoever multiplies by it, it is a number like any other;
    AutoRound (https://github.com/intel/auto-round) has long written such scales for the engines of the field.
    """
    one_sided = args.symmetric and args.number.kind == "int" and args.bits <= WIDEST
    if not one_sided or args.granularity not in ("channel", "group"):
        return numerics.weight_params(weight, args, model_dtype, importance)
    xp = namespace(weight)
    found = []
    for rows, _ in numerics.slices(weight):
        values = numerics.split(weight[rows, :], args)
        low, high = numerics.minmax(values)
        sign = xp.where(high > -low, -xp.ones_like(low), xp.ones_like(low))
        turned = numerics.join(values * xp.expand_dims(sign, axis=-1), weight[rows, :].shape, args)
        scale, _ = numerics.weight_params(turned, args, model_dtype, importance)
        found.append(scale * astype(sign, dtype_name(scale)))
    return xp.concat(found), None
