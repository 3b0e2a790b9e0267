"""Checks of quantized tensors: the same rules for tensors that plugins return and for tensors that formats read.

Each function returns the fault as a phrase, or ``None``. The caller names the layer and chooses the error.
"""

from gs_core.arrays import FLOAT_DTYPES, Array, RawTensor, astype, dtype_name, namespace
from gs_core.interfaces import StaticInput
from gs_core.quantized import QuantizedTensor
from gs_schemas import QuantizationArgs

MAX_SIGNED_BITS = 4
"""Symmetric integers of at most so many bits may have a negative scale (AWQ, AutoRound): -8 is then the largest."""


def tensor_fault(tensor: QuantizedTensor) -> str | None:
    """Why this is not a quantized tensor of its args: dtypes, shapes, scales, zero points, codes."""
    args, shape = tensor.args, _scale_shape(tensor.shape, tensor.args)
    if tuple(tensor.scale.shape) != shape:
        return f"scales have shape {list(tensor.scale.shape)}, {_name(args)} needs {list(shape)}"
    if (tensor.zero_point is None) != args.symmetric:
        return f"{_name(args)} {'has no' if args.symmetric else 'needs'} zero points"
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

    args: the numbers of a weight, whose scales may be negative (``MAX_SIGNED_BITS``).
    """
    if dtype_name(scale) not in FLOAT_DTYPES:
        return f"scales are {dtype_name(scale)}, not one of {', '.join(FLOAT_DTYPES)}"
    xp, values = namespace(scale), astype(scale, "float32")
    if not bool(xp.all(xp.isfinite(values))):
        return "scales contain NaN or infinity"
    if bool(xp.any(values == 0)):
        return "scales contain zero"
    signed = args is not None and args.symmetric and args.number.is_integer and args.bits <= MAX_SIGNED_BITS
    if not signed and bool(xp.any(values < 0)):
        return "scales contain negative numbers"
    return None


def input_fault(inputs: StaticInput, args: QuantizationArgs) -> str | None:
    """Why these are not the parameters of a statically quantized activation or cache."""
    found = scale_fault(inputs.scale)
    if found is None and inputs.zero_point is not None:
        found = _range_fault("zero points", inputs.zero_point, args)
    return found


def array_fault(name: str, array: Array | RawTensor) -> str | None:
    """Why a format's array cannot be written: float numbers must be finite, and scales not zero.

    name: the last part of the tensor's name; those of scales end in ``scale``.
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
    """A fault if values are not in the range of the number format. NaN is out of range."""
    xp, number = namespace(values), args.number
    low, high = float(xp.min(values)), float(xp.max(values))
    if number.minimum <= low <= high <= number.maximum:
        return None
    return f"{what} run from {low:g} to {high:g}, {args.format} holds {number.minimum:g} to {number.maximum:g}"


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
