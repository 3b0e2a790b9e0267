"""Activations: quantized at run time per token or tensor, or with scales fixed beforehand."""

from gs_core.arrays import Array, astype, device, namespace
from gs_core.numerics import groups
from gs_core.numerics.integer import rounded, scale_from_range
from gs_schemas import QuantizationArgs


def fake_quantize(
    x: Array, args: QuantizationArgs, scale: Array | None = None, zero_point: Array | None = None, keep: float = 1.0
) -> Array:
    """``x`` ``(..., features)`` as an engine sees it after quantizing and dequantizing, same shape and dtype.

    Static args need ``scale`` (and ``zero_point`` when asymmetric), each of one element. Dynamic ones cover ``keep``
    times the range.
    """
    xp = namespace(x)
    if not args.dynamic and scale is None:
        raise ValueError("static activations need a scale")
    # What was read from a file is NumPy's, whatever ``x`` is and wherever it lies.
    scale = None if scale is None else xp.asarray(astype(scale, "float32"), device=device(x))
    zero_point = None if zero_point is None else xp.asarray(astype(zero_point, "float32"), device=device(x))
    flat = xp.reshape(x, (-1, x.shape[-1]))
    out = xp.empty_like(flat)
    height = groups.height(flat.shape[0], args) if args.dynamic else 1
    for rows, _ in groups.slices(flat, height):
        values = astype(flat[rows, :], "float32")
        shape = values.shape
        if args.dynamic:
            values = groups.split(values, args)
            scale, zero_point = _params(values, args, keep)
        values = rounded(values, scale, zero_point, args)
        out[rows, :] = xp.astype(groups.join(values, shape, args) if args.dynamic else values, x.dtype)
    return xp.reshape(out, x.shape)


def _params(values: Array, args: QuantizationArgs, keep: float) -> tuple[Array, Array | None]:
    """Scale and zero point of each group of ``(rows, groups, elements)``, ``(rows, groups, 1)``."""
    xp = namespace(values)
    low, high = xp.min(values, axis=-1) * keep, xp.max(values, axis=-1) * keep
    scale, zero_point = scale_from_range(low, high, args, "float32")
    return xp.expand_dims(scale, axis=-1), None if zero_point is None else xp.expand_dims(zero_point, axis=-1)
