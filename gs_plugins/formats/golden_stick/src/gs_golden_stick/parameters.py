"""The numbers of a quantized layer as Ascend's kernels take them.

A static int8 product is ``(x_int @ weight.T + quant_bias) * deq_scale`` with ``x_int = round(x / input_scale) +
input_offset``: ``deq_scale`` joins both scales, ``quant_bias`` takes the offset out again.
"""

import numpy as np

from gs_core import Array, QuantizedTensor, StaticInput
from gs_core.arrays import astype, dtype_name, to_numpy
from gs_core.errors import CheckpointError


def oriented(parameter: np.ndarray, granularity: str) -> np.ndarray:
    """Scales or zero points ``(out, groups)`` as ``(out,)`` per channel, ``(groups, out)`` per group."""
    return parameter.reshape(-1) if granularity == "channel" else np.ascontiguousarray(parameter.T)


def weight_offset(tensor: QuantizedTensor) -> np.ndarray:
    """Zero points in the scale's shape, int32; zeros where there are none."""
    if tensor.zero_point is None:
        return np.zeros(tuple(tensor.scale.shape), np.int32)
    return to_numpy(tensor.zero_point).astype(np.int32)


def deq_scale(tensor: QuantizedTensor, inputs: StaticInput) -> np.ndarray:
    """float32 ``(out,)``: the product of both scales as they are stored, exact in float32 for 16-bit ones."""
    scale = to_numpy(astype(tensor.scale, "float32")).reshape(-1)
    return scale * to_numpy(astype(inputs.scale, "float32")).reshape(1)


def float_bits(values: np.ndarray) -> np.ndarray:
    """float32 as int64 whose low half is its bit pattern: what a fp16 product takes for its scale."""
    return values.view(np.uint32).astype(np.int64)


def from_float_bits(values: np.ndarray) -> np.ndarray:
    """float32 of such int64 or uint64; float32 stays as it is."""
    if values.dtype.kind == "f":
        return values.astype(np.float32)
    return (values.astype(np.uint64) & 0xFFFFFFFF).astype(np.uint32).view(np.float32)


def input_scale(inputs: StaticInput, features: int, divisor: Array | None) -> np.ndarray:
    """``(features,)`` in the dtype of the input's scale: times what each feature is divided by before.

    Raises ``CheckpointError`` where that dtype cannot hold the product.
    """
    scale = to_numpy(inputs.scale).reshape(1)
    if divisor is None:
        return np.repeat(scale, features)
    return _held(scale.astype(np.float32) * to_numpy(astype(divisor, "float32")), scale.dtype)


def reciprocal(inputs: StaticInput) -> np.ndarray:
    """``(1,)`` in the dtype of the input's scale: what multiplies instead of dividing. Raises as ``input_scale``."""
    scale = to_numpy(inputs.scale).reshape(1)
    return _held(1 / scale.astype(np.float32), scale.dtype)


def _held(scales: np.ndarray, dtype: np.dtype) -> np.ndarray:
    with np.errstate(over="ignore"):
        found = scales.astype(dtype)
    if not np.isfinite(found.astype(np.float32)).all() or (found == 0).any():
        raise CheckpointError(f"scales of activations beyond what {dtype} holds; convert the model to bfloat16")
    return found


def smooth_scale(divisor: Array | None, features: int, dtype: np.dtype) -> np.ndarray:
    """What a layer multiplies its input by instead of dividing it, ``(features,)``; ones where there is nothing."""
    if divisor is None:
        return np.ones(features, dtype)
    return (1 / to_numpy(astype(divisor, "float32"))).astype(dtype)


def input_offset(inputs: StaticInput) -> int:
    """The zero point of the activations. Raises ``CheckpointError`` when it is none of int8's numbers."""
    if inputs.zero_point is None:
        return 0
    offset = float(to_numpy(inputs.zero_point).reshape(-1)[0])
    if offset != int(offset) or not -128 <= offset <= 127:
        raise CheckpointError(f"the activations' zero point is {offset}, which int8 cannot hold")
    return int(offset)


def quant_bias(tensor: QuantizedTensor, inputs: StaticInput) -> np.ndarray:
    """int32 ``(out,)``: minus the offset times the row's codes, exact.

    Raises ``CheckpointError`` where int32 cannot hold it (beyond 130,000 input features).
    """
    bias = -input_offset(inputs) * to_numpy(tensor.codes).sum(axis=1, dtype=np.int64)
    if np.abs(bias).max(initial=0) >= 2**31:
        raise CheckpointError(f"the offset of the activations times {tensor.shape[1]} codes overflows int32")
    return bias.astype(np.int32)


def scale_dtype(scale: Array) -> str:
    """The dtype that kernels with dynamic activations take scales in: bfloat16 for bfloat16, else float32."""
    return "bfloat16" if dtype_name(scale) == "bfloat16" else "float32"
