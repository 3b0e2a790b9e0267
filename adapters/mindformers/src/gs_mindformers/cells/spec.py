"""What a quantized cell is made of, from a scheme or from the parameters in a file."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from gs_core import CheckpointError
from gs_schemas import QuantizationScheme

WEIGHT = "._layer.weight"
SCALE, ZERO = "_layer.matmul.weight_scale", "_layer.matmul.weight_zp"
SMOOTH = "_layer.matmul.smooth_scale"
INPUT_SCALE, INPUT_ZERO = "quant_op.input_scale", "quant_op.input_zp"


@dataclass(frozen=True)
class Spec:
    """bits: of the weight, 8 or 4 (``qint4x2``). groups: of input features that have scales of their own, None for one
    scale per channel. inputs: activations in floating point, with one scale fixed beforehand, or quantized per token
    as they come. each_feature: a static scale is repeated for every input feature, and divides; a single one
    multiplies. smooth: activations are multiplied by a ``smooth_scale`` first."""

    bits: int
    groups: int | None = None
    inputs: Literal["float", "static", "dynamic"] = "float"
    each_feature: bool = True
    smooth: bool = False

    def scales(self, rows: int) -> tuple[int, ...]:
        """The shape of the weight's scales."""
        return (rows,) if self.groups is None else (self.groups, rows)


def spec_of(scheme: QuantizationScheme, columns: int, *, each_feature: bool = True, smooth: bool = False) -> Spec:
    """The cell of a layer of ``columns`` input features. Raises ``ValueError`` for what no cell computes."""
    weights, inputs = scheme.weights, scheme.inputs
    if weights is None or weights.format not in ("int8", "int4") or weights.granularity not in ("channel", "group"):
        raise ValueError(f"no cell computes {scheme.describe()}: weights are int8 or int4, per channel or per group")
    if inputs is not None and (inputs.format != "int8" or (weights.bits == 8 and weights.granularity == "group")):
        raise ValueError(f"no cell computes {scheme.describe()}: int8 products have scales per channel")
    if inputs is not None and not inputs.dynamic and weights.bits == 4:
        raise ValueError(f"no cell computes {scheme.describe()}: int4 weights take activations quantized per token")
    groups = columns // weights.group_size if weights.group_size else None
    how: Literal["float", "static", "dynamic"] = "float"
    if inputs is not None:
        how = "dynamic" if inputs.dynamic else "static"
    return Spec(weights.bits, groups, how, each_feature, smooth)


def read_specs(tensors: Mapping[str, Any]) -> dict[str, Spec]:
    """The cells that a file's parameters belong to, by the name of the layer. ``tensors``: what has ``dtype`` and
    ``shape``. Raises ``CheckpointError`` when some of a cell's parameters are missing."""
    found = {}
    for name, tensor in tensors.items():
        if not name.endswith(WEIGHT):
            continue
        layer = name.removesuffix(WEIGHT)
        bits = 4 if str(tensor.dtype).lower() in ("qint4x2", "int4") else 8
        scale, smooth = tensors.get(f"{layer}.{SCALE}"), f"{layer}.{SMOOTH}" in tensors
        static = tensors.get(f"{layer}.{INPUT_SCALE}")
        if static is not None:
            found[layer] = Spec(bits, None, "static", len(static.shape) == 1 and static.shape[0] > 1, smooth)
        elif scale is None:
            raise CheckpointError(f"{layer} has neither {SCALE} nor {INPUT_SCALE}")
        else:
            groups = int(scale.shape[0]) if len(scale.shape) == 2 else None
            found[layer] = Spec(bits, groups, "float" if f"{layer}.{ZERO}" in tensors else "dynamic", smooth=smooth)
    return found
