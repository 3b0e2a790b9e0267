"""How a range is chosen from values: keep them all, or accept clipping a few for a finer step.

Inputs are shaped by ``groups.split``: ``(rows, groups, elements)``; ranges come back as ``(rows, groups)``.
"""

from gs_core.arrays import Array, astype, device, namespace
from gs_core.numerics import groups
from gs_core.numerics.integer import quantize_with, rounded, scale_dtype, scale_from_range
from gs_core.quantized import QuantizedTensor
from gs_schemas import QuantizationArgs

STEPS, STRIDE, SMALLEST = 80, 4, 0.2
"""The MSE search knows this many fractions of the full range, down to the smallest. It tries every fourth, then those
around the best."""


def minmax(values: Array) -> tuple[Array, Array]:
    """Smallest and largest value of each group."""
    xp = namespace(values)
    return xp.min(values, axis=-1), xp.max(values, axis=-1)


def mse_fraction(values: Array, args: QuantizationArgs, dtype: str, importance: Array | None = None) -> Array:
    """The fraction of the full range that minimises the (weighted) squared rounding error of each group.

    ``importance`` broadcasts against ``values`` (the diagonal of a Hessian, for one). A grid search: the error
    is not convex in the fraction.
    """
    xp = namespace(values)
    low, high = minmax(values)
    least = xp.full_like(low, float("inf"))
    best = xp.ones_like(low)

    def offer(fractions: Array) -> None:
        """``(fractions, rows, groups)``, or with one row and group for all of them."""
        nonlocal best, least
        scales, zero_points = scale_from_range(low * fractions, high * fractions, args, dtype)
        scales = xp.expand_dims(astype(scales, "float32"), axis=-1)
        zero_points = None if zero_points is None else xp.expand_dims(zero_points, axis=-1)
        for i in range(fractions.shape[0]):
            scale, zero_point = scales[i, ...], None if zero_points is None else zero_points[i, ...]
            error = rounded(values, scale, zero_point, args)
            error -= values
            error *= error
            if importance is not None:
                error *= importance
            total = xp.sum(error, axis=-1)
            better = total < least
            least = xp.where(better, total, least)
            best = xp.where(better, fractions[i, ...], best)

    step = (1.0 - SMALLEST) / STEPS
    steps = xp.arange(0, STEPS, STRIDE, dtype=low.dtype, device=device(low))
    offer(xp.reshape(1.0 - steps * step, (-1, 1, 1)))
    near = [number for number in range(1 - STRIDE, STRIDE) if number]
    offer(xp.clip(best + xp.reshape(xp.asarray(near, dtype=low.dtype, device=device(low)), (-1, 1, 1)) * step, max=1.0))
    return best


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
