"""Checks of quantized tensors. The same rules apply to tensors from algorithms and to tensors from checkpoints.

Each function returns a description of the fault, or ``None``. The caller names the layer and raises the error.
"""

from gs_core.arrays import FLOAT_DTYPES, Array, RawTensor, astype, dtype_name, namespace
from gs_core.interfaces import StaticInput
from gs_core.quantized import QuantizedTensor
from gs_schemas import QuantizationArgs

MAX_SIGNED_SCALE_BITS = 4
"""Symmetric integers of at most this many bits may have negative scales (AWQ, AutoRound). In int4, code -8 is then the
largest value."""


def tensor_fault(tensor: QuantizedTensor) -> str | None:
    """The first fault in shapes, scales, zero points or codes of a quantized tensor."""
    args, shape = tensor.args, _scale_shape(tensor.shape, tensor.args)
    if tuple(tensor.scale.shape) != shape:
        return f"scales have shape {list(tensor.scale.shape)}, {_name(args)} needs {list(shape)}"
    if args.symmetric and tensor.zero_point is not None:
        return f"zero points are not allowed for symmetric {_name(args)}"
    if not args.symmetric and tensor.zero_point is None:
        return f"zero points are missing for asymmetric {_name(args)}"
    found = scale_fault(tensor.scale, args)
    if found is None and args.number.is_integer:
        found = _range_fault("codes", tensor.codes, args)
    if found is None and tensor.zero_point is not None:
        if tuple(tensor.zero_point.shape) != shape:
            return f"zero points have shape {list(tensor.zero_point.shape)}, scales have {list(shape)}"
        found = _range_fault("zero points", tensor.zero_point, args)
    return found


def scale_fault(scale: Array, args: QuantizationArgs | None = None) -> str | None:
    """Scales must be floats of at least 16 bits, finite and positive.

    args: args of a weight; its scales may be negative (``MAX_SIGNED_SCALE_BITS``).
    """
    if dtype_name(scale) not in FLOAT_DTYPES:
        return f"scales are {dtype_name(scale)}, not one of {', '.join(FLOAT_DTYPES)}"
    xp, values = namespace(scale), astype(scale, "float32")
    if not bool(xp.all(xp.isfinite(values))):
        return "scales contain NaN or infinity"
    if bool(xp.any(values == 0)):
        return "scales contain zero"
    signed = args is not None and args.symmetric and args.number.is_integer and args.bits <= MAX_SIGNED_SCALE_BITS
    if not signed and bool(xp.any(values < 0)):
        return "scales contain negative numbers"
    return None


def input_fault(inputs: StaticInput, args: QuantizationArgs) -> str | None:
    """The first fault in the scale or zero point of a static activation or cache."""
    found = scale_fault(inputs.scale)
    if found is None and inputs.zero_point is not None:
        found = _range_fault("zero points", inputs.zero_point, args)
    return found


def array_fault(name: str, array: Array | RawTensor) -> str | None:
    """The fault of an array that a format packed: NaN, infinity, or a scale of zero.

    name: last part of the tensor's name. Names of scales end in ``scale``.
    """
    if isinstance(array, RawTensor) or dtype_name(array) not in FLOAT_DTYPES:
        return None
    xp, values = namespace(array), astype(array, "float32")
    if not bool(xp.all(xp.isfinite(values))):
        return "it contains NaN or infinity"
    if name.endswith("scale") and bool(xp.any(values == 0)):
        return f"it contains zero; {dtype_name(array)} cannot hold its smallest scale"
    return None


def _range_fault(what: str, values: Array, args: QuantizationArgs) -> str | None:
    """The fault of values outside the range of the number format. NaN is outside."""
    xp, number = namespace(values), args.number
    low, high = float(xp.min(values)), float(xp.max(values))
    if number.minimum <= low <= high <= number.maximum:
        return None
    return f"{what} are between {low:g} and {high:g}, {args.format} allows {number.minimum:g} to {number.maximum:g}"


def _name(args: QuantizationArgs) -> str:
    return f"{args.format} per {args.granularity}"


def _scale_shape(shape: tuple[int, int], args: QuantizationArgs) -> tuple[int, int]:
    rows, columns = shape
    if args.granularity == "tensor":
        return 1, 1
    if args.granularity == "group" and args.group_size:
        return rows, columns // args.group_size
    if args.granularity == "block" and args.block_size:
        return rows // args.block_size[0], columns // args.block_size[1]
    return rows, 1
