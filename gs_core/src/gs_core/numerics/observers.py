"""How a range is chosen from values: keep them all, or accept clipping a few for a finer step.

Inputs are shaped by ``groups.split``: ``(rows, groups, elements)``; ranges come back as ``(rows, groups)``.
"""

from gs_core.arrays import Array, namespace
from gs_core.numerics import groups
from gs_core.numerics.integer import quantize_with, scale_dtype, scale_from_range
from gs_core.numerics.mse import mse_fraction
from gs_core.quantized import QuantizedTensor
from gs_schemas import QuantizationArgs


def minmax(values: Array) -> tuple[Array, Array]:
    """Smallest and largest value of each group."""
    xp = namespace(values)
    return xp.min(values, axis=-1), xp.max(values, axis=-1)


def weight_params(
    weight: Array, args: QuantizationArgs, model_dtype: str, importance: Array | None = None
) -> tuple[Array, Array | None]:
    """Scale and zero point ``(rows, groups)`` for a weight ``(out, in)``, by ``args.observer``.

    ``importance``: ``(in,)``, how much an error in each input feature matters; used by ``mse`` alone.
    """
    xp = namespace(weight)
    dtype = scale_dtype(args, model_dtype)
    parts = groups.slices(weight, groups.height(weight.shape[0], args))
    found = [_params(weight[rows, :], args, dtype, importance) for rows, _ in parts]
    scales, zero_points = zip(*found, strict=True)
    return xp.concat(scales), None if zero_points[0] is None else xp.concat(zero_points)


def _params(weight: Array, args: QuantizationArgs, dtype: str, importance: Array | None) -> tuple[Array, Array | None]:
    xp = namespace(weight)
    values = groups.split(weight, args)
    low, high = minmax(values)
    if args.observer == "mse":
        if importance is not None:
            importance = groups.split(xp.broadcast_to(importance, weight.shape), args)
        fraction = mse_fraction(values, args, dtype, importance)
        low, high = low * fraction, high * fraction
    return scale_from_range(low, high, args, dtype)


def quantize_weight(weight: Array, args: QuantizationArgs, model_dtype: str) -> QuantizedTensor:
    """Round a weight ``(out, in)`` to nearest under scales chosen by ``args.observer``."""
    return quantize_with(weight, *weight_params(weight, args, model_dtype), args)
