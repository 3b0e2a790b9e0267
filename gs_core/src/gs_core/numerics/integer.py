"""Integer formats: from a range to a scale, from numbers to codes and back.

Convention (compressed-tensors and Quark; facts measured on their output): a symmetric scale spreads the widest
magnitude over half the code range, ``amax / ((qmax - qmin) / 2)``, so int4 divides by 7.5 and the largest
positive value saturates; an asymmetric range always contains zero. Rounding is half to even.
"""

from gs_core.arrays import Array, astype, dtype_name, namespace
from gs_core.numerics import groups
from gs_core.quantized import QuantizedTensor
from gs_schemas import QuantizationArgs

# A scale that rounds to zero when stored divides to infinity; these survive the rounding.
SMALLEST_SCALE = {"float16": 2.0**-24}
SMALLEST_NORMAL = 2.0**-120


def scale_from_range(low: Array, high: Array, args: QuantizationArgs, scale_dtype: str) -> tuple[Array, Array | None]:
    """Scale and zero point (float32, on the code grid) that cover ``[low, high]``, elementwise.

    The scale comes back already rounded to ``scale_dtype``: codes must be computed with what is stored.
    """
    xp = namespace(low)
    number = args.number
    if args.symmetric:
        amax = xp.maximum(xp.abs(low), xp.abs(high))
        scale, zero_point = amax * (2.0 / (number.maximum - number.minimum)), None
    else:
        low, high = xp.minimum(low, xp.zeros_like(low)), xp.maximum(high, xp.zeros_like(high))
        scale, zero_point = (high - low) * (1.0 / (number.maximum - number.minimum)), low
    # A group of zeros has no range: any scale says it exactly.
    smallest = SMALLEST_SCALE.get(scale_dtype, SMALLEST_NORMAL)
    scale = xp.where(scale > 0, xp.clip(scale, min=smallest), xp.ones_like(scale))
    scale = astype(scale, scale_dtype)
    if zero_point is not None:
        zero_point = xp.clip(number.minimum - xp.round(low / astype(scale, "float32")), number.minimum, number.maximum)
    return scale, zero_point


def encode(x: Array, scale: Array, zero_point: Array | None, args: QuantizationArgs) -> Array:
    """Codes of ``x`` in float32. ``scale`` and ``zero_point`` broadcast against ``x``."""
    xp = namespace(x)
    codes = xp.round(x / scale)
    if zero_point is not None:
        codes = codes + zero_point
    return xp.clip(codes, args.number.minimum, args.number.maximum)


def decode(codes: Array, scale: Array, zero_point: Array | None) -> Array:
    """``(codes - zero_point) * scale``."""
    return codes * scale if zero_point is None else (codes - zero_point) * scale


def code_dtype(args: QuantizationArgs) -> str:
    return "uint8" if args.number.kind == "uint" else "int8"


def scale_dtype(args: QuantizationArgs, model_dtype: str) -> str:
    """The dtype a scale is stored in: the model's own unless the args name one."""
    return model_dtype if args.scale_format == "model" else args.scale_format


def quantize_with(weight: Array, scale: Array, zero_point: Array | None, args: QuantizationArgs) -> QuantizedTensor:
    """Round ``weight`` ``(out, in)`` to the nearest code under given scales ``(rows, groups)``."""
    xp = namespace(weight)
    wide = astype(scale, "float32")
    codes = encode(
        groups.split(weight, args),
        xp.expand_dims(wide, axis=-1),
        None if zero_point is None else xp.expand_dims(astype(zero_point, "float32"), axis=-1),
        args,
    )
    codes = groups.join(codes, (weight.shape[0], weight.shape[1]), args)
    dtype = code_dtype(args)
    return QuantizedTensor(astype(codes, dtype), scale, None if zero_point is None else astype(zero_point, dtype), args)


def dequantize(tensor: QuantizedTensor, dtype: str = "float32") -> Array:
    """The weight that the codes stand for, ``(out, in)``, computed in float32."""
    xp = namespace(tensor.codes)
    scale = astype(tensor.scale, "float32")
    zero_point = None if tensor.zero_point is None else astype(tensor.zero_point, "float32")
    codes = astype(tensor.codes, "float32")
    if tensor.group_index is not None:
        scale = xp.take(scale, tensor.group_index, axis=1)
        zero_point = None if zero_point is None else xp.take(zero_point, tensor.group_index, axis=1)
        weight = decode(codes, scale, zero_point)
    else:
        weight = groups.join(
            decode(
                groups.split(codes, tensor.args),
                xp.expand_dims(scale, axis=-1),
                None if zero_point is None else xp.expand_dims(zero_point, axis=-1),
            ),
            tensor.shape,
            tensor.args,
        )
    return weight if dtype == dtype_name(weight) else astype(weight, dtype)
