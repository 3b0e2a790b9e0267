"""Activations: quantized at run time per token or tensor, or with scales fixed beforehand."""

from gs_core.arrays import Array, astype, namespace
from gs_core.numerics import groups
from gs_core.numerics.integer import decode, encode, scale_from_range
from gs_schemas import QuantizationArgs


def fake_quantize(
    x: Array, args: QuantizationArgs, scale: Array | None = None, zero_point: Array | None = None
) -> Array:
    """``x`` ``(..., features)`` as an engine sees it after quantizing and dequantizing, same shape and dtype.

    Static args need ``scale`` (and ``zero_point`` when asymmetric), each of one element.
    """
    xp = namespace(x)
    wide = astype(x, "float32")
    if args.dynamic:
        rows = xp.reshape(wide, (-1, x.shape[-1]))
        values = groups.split(rows, args)
        low, high = xp.min(values, axis=-1), xp.max(values, axis=-1)
        scale, zero_point = scale_from_range(low, high, args, "float32")
        scale = xp.expand_dims(scale, axis=-1)
        zero_point = None if zero_point is None else xp.expand_dims(zero_point, axis=-1)
        rows = groups.join(decode(encode(values, scale, zero_point, args), scale, zero_point), rows.shape, args)
        out = xp.reshape(rows, x.shape)
    else:
        if scale is None:
            raise ValueError("static activations need a scale")
        scale = astype(scale, "float32")
        zero_point = None if zero_point is None else astype(zero_point, "float32")
        out = decode(encode(wide, scale, zero_point, args), scale, zero_point)
    return xp.astype(out, x.dtype)
