"""Checks of tensors in a checkpoint: dtypes, shapes, and quantization parameters that belong to no layer."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from gs_core.arrays import FLOAT_DTYPES
from gs_core.errors import CheckpointError
from gs_core.storage.tensors import DerivedTensor, StoredTensor

QUANTIZATION_PARAMETERS = frozenset({
    "weight_scale", "weight_scale_inv", "weight_global_scale", "weight_zero_point", "weight_packed", "weight_shape",
    "weight_offset", "weight_zp", "weight_g_idx", "input_scale", "input_global_scale", "input_zero_point",
    "input_offset", "input_zp", "deq_scale", "dequant_scale", "quant_bias", "smooth_scale", "clip_ratio",
    "left_trans", "right_trans", "k_scale", "v_scale", "kv_cache_scale", "kv_cache_offset", "t_scale", "t_zp",
    "qweight", "qzeros",
})  # fmt: skip
"""Last parts of names of quantization parameters, in the formats of this project and in other formats."""
FLOAT8 = ("float8_e4m3fn", "float8_e5m2")
CODES = "integer codes without scales, not weights"


@dataclass(frozen=True)
class TensorSpec:
    """Dtypes and shapes that a scheme allows for a tensor. squeezed: axes of size 1 may be left out."""

    dtypes: Collection[str]
    shapes: Collection[tuple[int, ...]]
    squeezed: bool = False

    def check(self, tensor: StoredTensor | DerivedTensor) -> None:
        """Raise ``CheckpointError`` if the tensor has another dtype or shape."""
        if tensor.dtype not in self.dtypes:
            wanted = " or ".join(self.dtypes)
            raise CheckpointError(f"{tensor.name} is {tensor.dtype}, its scheme needs {wanted}; the file is damaged")
        shape, shapes = tensor.shape, list(self.shapes)
        if self.squeezed:
            shape, shapes = _squeezed(shape), [_squeezed(each) for each in shapes]
        if shape not in shapes:
            wanted = " or ".join(str(list(each)) for each in self.shapes)
            raise CheckpointError(
                f"{tensor.name} has shape {list(tensor.shape)}, its scheme needs {wanted}; the file is damaged"
            )


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def check_unread(tensors: Mapping[str, StoredTensor | DerivedTensor]) -> None:
    """Raise ``CheckpointError`` for integer weights and for quantization parameters that no reader has used.

    tensors: the tensors after each quantized layer was replaced by a float weight; all tensors of a float checkpoint.
    """
    for name, tensor in tensors.items():
        leaf = name.rpartition(".")[2]
        if leaf in QUANTIZATION_PARAMETERS:
            raise CheckpointError(
                f"{name} is a quantization parameter, but nothing in the folder says how its layer is quantized. "
                "The quantization_config in config.json, the description file, or another tensor of the layer is "
                "missing; copy the folder again"
            )
        if leaf == "weight":
            check_float(name, tensor.dtype)


def check_float(name: str, dtype: str) -> None:
    """Raise ``CheckpointError`` for a weight that is not stored as floating-point numbers."""
    if dtype not in (*FLOAT_DTYPES, *FLOAT8):
        raise CheckpointError(
            f"{name} is {dtype}: {CODES}. If the folder is quantized, its scales, quantization_config or description "
            "file are missing; copy it again. Otherwise save the model in bfloat16, float16 or float32"
        )
