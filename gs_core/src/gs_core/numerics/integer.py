"""Integer formats: from a range to a scale, from numbers to codes and back.

Convention (compressed-tensors and Quark; facts measured on their output): a symmetric scale spreads the widest
magnitude over half the code range, ``amax / ((qmax - qmin) / 2)``, so int4 divides by 7.5 and the largest
positive value saturates; an asymmetric range always contains zero. Rounding is half to even.
"""

from typing import Any

from gs_core.arrays import FLOAT_DTYPES, Array, astype, clip_in_place, device, namespace, numpy_dtype, round_in_place
from gs_core.numerics import groups
from gs_core.numerics.minifloat import nearest
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
    """Codes of ``x`` in float32. ``scale`` and ``zero_point`` broadcast against ``x``. A floating-point code is the
    number it says."""
    return nearest_codes(x / scale, zero_point, args)


def nearest_codes(steps: Array, zero_point: Array | None, args: QuantizationArgs) -> Array:
    """Codes of numbers that are multiples of their scales already; ``steps`` is used up."""
    number = args.number
    if number.kind == "float":
        return nearest(steps, number)
    codes = round_in_place(steps)
    if zero_point is not None:
        codes += zero_point
    return clip_in_place(codes, number.minimum, number.maximum)


def decode(codes: Array, scale: Array, zero_point: Array | None) -> Array:
    """``(codes - zero_point) * scale``."""
    return codes * scale if zero_point is None else (codes - zero_point) * scale


def rounded(x: Array, scale: Array, zero_point: Array | None, args: QuantizationArgs) -> Array:
    """What the codes of ``x`` stand for, in float32."""
    return _decode_in_place(encode(x, scale, zero_point, args), scale, zero_point)


def _decode_in_place(codes: Array, scale: Array, zero_point: Array | None) -> Array:
    if zero_point is not None:
        codes -= zero_point
    codes *= scale
    return codes


def code_dtype(args: QuantizationArgs) -> str:
    return "uint8" if args.number.kind == "uint" else "int8"


def scale_dtype(args: QuantizationArgs, model_dtype: str) -> str:
    """The dtype of stored scales: ``scale_format`` of the args, or the dtype of the weight if that is ``model``.

    Scales of a float8 weight are float32, because float8 rounds small scales to zero.
    """
    if args.scale_format != "model":
        return args.scale_format
    return model_dtype if model_dtype in FLOAT_DTYPES else "float32"


def stored_bits(shape: tuple[int, int], args: QuantizationArgs, model_dtype: str) -> int:
    """Bits of a stored weight: codes, scales and zero points."""
    rows, columns = shape
    height, width = {
        "tensor": (rows, columns),
        "group": (1, args.group_size or columns),
        "block": args.block_size or (1, columns),
    }.get(args.granularity, (1, columns))
    scales = -(-rows // height) * -(-columns // width)
    scale = 8 * numpy_dtype(scale_dtype(args, model_dtype)).itemsize
    return rows * columns * args.bits + scales * (scale + (0 if args.symmetric else args.bits))


def quantize_with(weight: Array, scale: Array, zero_point: Array | None, args: QuantizationArgs) -> QuantizedTensor:
    """Round ``weight`` ``(out, in)`` to the nearest code under given scales ``(rows, groups)``."""
    xp = namespace(weight)
    dtype = code_dtype(args)
    zero_point = None if zero_point is None else astype(zero_point, dtype)
    codes = xp.empty(weight.shape, dtype=getattr(xp, dtype), device=device(weight))
    for rows, at in groups.slices(weight, groups.height(weight.shape[0], args)):
        part = weight[rows, :]
        found = encode(groups.split(part, args), _wide(scale, at), _wide(zero_point, at), args)
        codes[rows, :] = astype(groups.join(found, part.shape, args), dtype)
    return QuantizedTensor(codes, scale, zero_point, args)


def dequantize(tensor: QuantizedTensor) -> Array:
    """The weight that the codes stand for, float32 ``(out, in)``."""
    xp = namespace(tensor.codes)
    args = tensor.args
    weight = xp.empty(tensor.shape, dtype=xp.float32, device=device(tensor.codes))
    for rows, at in groups.slices(tensor.codes, groups.height(tensor.shape[0], args)):
        part = astype(tensor.codes[rows, :], "float32")
        scale, zero_point = _wide(tensor.scale, at), _wide(tensor.zero_point, at)
        if tensor.group_index is not None:
            scale = xp.take(scale[:, :, 0], tensor.group_index, axis=1)
            zero_point = None if zero_point is None else xp.take(zero_point[:, :, 0], tensor.group_index, axis=1)
            weight[rows, :] = _decode_in_place(part, scale, zero_point)
        else:
            found = _decode_in_place(groups.split(part, args), scale, zero_point)
            weight[rows, :] = groups.join(found, part.shape, args)
    return weight


def _wide(parameter: Any, rows: slice) -> Any:
    """Rows of scales or zero points in float32, ``(rows, groups, 1)``."""
    if parameter is None:
        return None
    return namespace(parameter).expand_dims(astype(parameter[rows, :], "float32"), axis=-1)
