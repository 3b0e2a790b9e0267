"""Reading back: all layouts by the names of their tensors, whoever wrote them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gs_core import (
    CheckpointError,
    LinearMap,
    QuantizationArgs,
    QuantizationScheme,
    QuantizedTensor,
    StaticInput,
    numerics,
)
from gs_core.arrays import FLOAT_DTYPES, PACKED_INT4, RawTensor, from_raw, to_raw
from gs_core.checks import scale_fault, tensor_fault
from gs_core.interfaces import LayerNumbers
from gs_core.storage import Checkpoint, DerivedTensor, StoredTensor, TensorSpec
from gs_golden_stick import caches, flatquant, int4
from gs_golden_stick.labels import DESCRIPTIONS, FLOAT
from gs_golden_stick.parameters import from_float_bits
from gs_schemas import SchemaError, named, validate

_FOLDER = (
    "weight", "weight_scale", "weight_offset", "smooth_scale", "deq_scale", "quant_bias", "input_scale", "input_offset",
    *flatquant.PARTS,
)  # fmt: skip
_NETWORK = {
    "_layer.weight": "weight",
    "_layer.bias": "bias",
    "_layer.matmul.weight_scale": "weight_scale",
    "_layer.matmul.weight_zp": "added_offset",
    "_layer.matmul.smooth_scale": "smooth_scale",
    "_layer.matmul.dequant_scale": "deq_scale",
    "_layer.matmul.quant_bias": "quant_bias",
    "quant_op.input_scale": "input_scale",
    "quant_op.input_zp": "input_offset",
}
"""Names inside a network, and what folders call the same."""
FLOAT_BITS = ("int64", "uint64")
"""Dtypes of a float32 scale that is stored as its bit pattern."""
_OFFSETS = (*FLOAT_DTYPES, "int8", "int16", "int32", "int64")
_DTYPES = {
    "deq_scale": (*FLOAT_DTYPES, *FLOAT_BITS),
    "weight_offset": _OFFSETS,
    "added_offset": _OFFSETS,
    "input_offset": _OFFSETS,
}
"""Allowed dtypes of parameters that may be integers."""
_READABLE = {
    DESCRIPTIONS[0]: ("W8A16", "W4A16", "W8A8", "W8A8_DYNAMIC", "W4A8_DYNAMIC"),
    DESCRIPTIONS[1]: ("W8A16", "W8A8", "W8A8_DYNAMIC", "W4A4_DYNAMIC", flatquant.LABEL),
}


def read(checkpoint: Checkpoint) -> tuple[Checkpoint, dict[str, LayerNumbers]]:
    """See ``CheckpointFormat.read``. A network's file without a description is read by what its layers hold."""
    file, description = _description(checkpoint.folder)
    numbers: dict[str, LayerNumbers] = {}
    removed = {name for name in checkpoint.tensors if name.endswith(caches.SUFFIXES)}
    added: dict[str, DerivedTensor] = {}
    for name, parts in _layers(checkpoint).items():
        if not _is_quantized(checkpoint, name, parts, description or {}):
            continue
        layer = _Layer(checkpoint, name, parts, file, description)
        removed |= set(parts.values())
        added[f"{name}.weight"] = DerivedTensor(f"{name}.weight", "float32", layer.shape, layer.weight)
        numbers[name] = layer.numbers
        if "bias" in parts:
            stored = checkpoint[parts["bias"]]
            added[f"{name}.bias"] = DerivedTensor(f"{name}.bias", stored.dtype, stored.shape, stored.read)
    return checkpoint.replacing(removed, added), numbers


def _description(folder: Path) -> tuple[str, Mapping[str, Any] | None]:
    """The name of the description, and the type of every tensor by name; None where there is no such file."""
    for name in DESCRIPTIONS:
        if (folder / name).is_file():
            try:
                found = json.loads((folder / name).read_text(encoding="utf-8"))
            except (OSError, ValueError, RecursionError):
                found = None
            if not isinstance(found, dict):
                raise CheckpointError(f"{folder / name}: not a JSON object; copy it again")
            return name, found
    return DESCRIPTIONS[0], None


def _is_quantized(checkpoint: Checkpoint, name: str, parts: Mapping[str, str], types: Mapping[str, Any]) -> bool:
    """True if a layer has quantization parameters, integer codes, or a quantized type in the description."""
    if set(parts) - {"weight", "bias"}:
        return True
    stored = checkpoint[parts["weight"]] if "weight" in parts else None
    if stored is None:
        return False
    return stored.dtype not in FLOAT_DTYPES or (len(stored.shape) == 2 and types.get(stored.name, FLOAT) != FLOAT)


def _layers(checkpoint: Checkpoint) -> dict[str, dict[str, str]]:
    """Layer → part → tensor, for every tensor whose name ends as a quantized layer's do."""
    layers: dict[str, dict[str, str]] = {}
    for name in checkpoint.tensors:
        suffix = next((suffix for suffix in _NETWORK if name.endswith(f".{suffix}")), None)
        if suffix is not None:
            layers.setdefault(name.removesuffix(f".{suffix}"), {})[_NETWORK[suffix]] = name
        else:
            layer, _, suffix = name.rpartition(".")
            if suffix in _FOLDER:
                layers.setdefault(layer, {})[suffix] = name
    return layers


class _Layer:
    """A quantized layer of a checkpoint. Raises ``CheckpointError`` when its tensors do not fit together.

    shape: ``(out, in)``. inputs: a scale and an offset for the whole input, or for each of its features where the
    layer smooths it too. scale, zero_point: float32 and int8 ``(out, groups)``. transposed: a cell of a network keeps
    int8 codes ``(in, out)``, as it kept the weight; nothing but the number of scales tells, so that a square weight is
    taken for ``(out, in)``.
    """

    def __init__(
        self, checkpoint: Checkpoint, name: str, parts: Mapping[str, str], file: str, types: Mapping[str, Any] | None
    ):
        self.checkpoint, self.name, self.parts = checkpoint, name, parts
        stored = checkpoint[parts.get("weight", f"{name}.weight")]
        self.label = self._inferred(stored.dtype) if types is None else types.get(stored.name, FLOAT)
        if self.label not in _READABLE[file]:
            raise CheckpointError(
                f"{file} gives {stored.name}, which is quantized, the type {self.label!r:.40}; "
                f"read here: {', '.join(_READABLE[file])}"
            )
        if len(stored.shape) != 2 or stored.dtype not in ("int8", PACKED_INT4):
            raise CheckpointError(
                f"{stored.name} is {stored.dtype} of shape {list(stored.shape)}, not int8 of two axes"
            )
        self.bits = int(self.label[1])
        # By its type, not its dtype: a copy that lost MindSpore's metadata has packed bytes as int8.
        self.packed = self.bits == 4 and file == DESCRIPTIONS[0]
        rows, columns = stored.shape
        self.transposed = self._lies_transposed(stored)
        self.shape = (columns * 2, rows) if self.packed else (columns, rows) if self.transposed else (rows, columns)
        self.inputs = self._inputs() if self.label == "W8A8" else None
        self.grouped = self.packed and len(self._stored("weight_scale").shape) == 2
        self.scale = self._scale()
        if self.label.endswith("A16"):
            self._offset_part()
        self.zero_point = self._zero_point()
        self.smooth = self._smooth()
        online = None
        if self.smooth is not None and self.label.endswith("_DYNAMIC"):  # the scales of tokens are those of products
            online, self.smooth = LinearMap(scale=1 / self.smooth), None
        if self.label == flatquant.LABEL:
            online = self._pair()
        self.numbers = LayerNumbers(self._scheme(), self.inputs, online)

    def _lies_transposed(self, stored: StoredTensor | DerivedTensor) -> bool:
        if self.packed or not stored.name.endswith("._layer.weight"):
            return False
        scales = self._stored("deq_scale" if "deq_scale" in self.parts else "weight_scale").shape[0]
        return stored.shape[1] == scales != stored.shape[0]

    def _inferred(self, dtype: str) -> str:
        if "deq_scale" in self.parts:
            return "W8A8"
        bits, floats = 4 if dtype == PACKED_INT4 else 8, {"added_offset", "weight_offset"} & set(self.parts)
        return f"W{bits}A16" if floats else f"W{bits}A8_DYNAMIC"

    def _stored(self, part: str) -> StoredTensor | DerivedTensor:
        if part not in self.parts:
            raise CheckpointError(f"{self.name}: no {part}, which {self.label} needs")
        return self.checkpoint[self.parts[part]]

    def _array(self, part: str, *shapes: tuple[int, ...]) -> np.ndarray:
        """A part in float32 with one of these shapes. Scales are finite and positive; int4 scales may be negative."""
        stored = self._stored(part)
        TensorSpec(_DTYPES.get(part, FLOAT_DTYPES), shapes).check(stored)
        values = from_raw(stored.read())
        if part == "deq_scale" and stored.dtype in FLOAT_BITS:
            values = from_float_bits(values)
        values = values.astype(np.float32)
        fault = None
        if part.endswith("scale"):
            fault = scale_fault(values, QuantizationArgs(format="int4") if self.bits == 4 else None)
        elif not np.isfinite(values).all():
            fault = "contains NaN or infinity"
        if fault:
            raise CheckpointError(f"{stored.name}: {fault}; the checkpoint is damaged")
        return values

    def _inputs(self) -> StaticInput:
        shapes = ((1,), (self.shape[1],))
        scale, offset = self._array("input_scale", *shapes), self._array("input_offset", *shapes)
        if scale.shape == (1,) and self.parts["input_scale"].endswith("quant_op.input_scale"):
            scale = 1 / scale  # this cell multiplies by it
        scale, offset = (values[:1] if (values == values[0]).all() else values for values in (scale, offset))
        return StaticInput(scale, offset if offset.any() else None)

    def _scale(self) -> np.ndarray:
        rows, columns = self.shape
        if self.inputs is not None:
            joint = self._array("deq_scale", (rows,), (rows, 1)).reshape(-1, 1)
            return joint if len(self.inputs.scale) > 1 else joint / self.inputs.scale
        stored = self._stored("weight_scale")
        if self.grouped and (not stored.shape[0] or columns % stored.shape[0]):
            raise CheckpointError(f"{stored.name}: {columns} input features in {stored.shape[0]} groups")
        return self._by_row("weight_scale", stored.shape[0])

    def _by_row(self, part: str, groups: int) -> np.ndarray:
        """``(out, groups)`` of what is stored as ``(groups, out)``, ``(out,)`` or ``(out, 1)``."""
        rows = self.shape[0]
        if self.grouped:
            return np.ascontiguousarray(self._array(part, (groups, rows)).T)
        return self._array(part, (rows,), (rows, 1)).reshape(-1, 1)

    def _offset_part(self) -> str:
        """Name of the tensor with the zero points. A layer with float activations must have it."""
        found = self.parts.get("weight_offset", self.parts.get("added_offset"))
        if found is None:
            raise CheckpointError(
                f"{self.name}: weight_offset is missing, and {self.label} needs it; the checkpoint is incomplete"
            )
        return found

    def _zero_point(self) -> np.ndarray | None:
        for part, sign in (("weight_offset", 1), ("added_offset", -1)):
            if part in self.parts and self.inputs is None:
                offset = sign * self._by_row(part, self.scale.shape[1])
                lowest = -(2 ** (self.bits - 1))
                if (offset != np.round(offset)).any() or offset.min() < lowest or offset.max() >= -lowest:
                    raise CheckpointError(
                        f"{self.parts[part]}: not all values are zero points of int{self.bits}; "
                        "the checkpoint is damaged"
                    )
                return offset.astype(np.int8) if offset.any() else None
        return None

    def _smooth(self) -> np.ndarray | None:
        if "smooth_scale" not in self.parts:
            return None
        found = self._array("smooth_scale", (self.shape[1],))
        return found if (found != 1).any() else None

    def _pair(self) -> LinearMap:
        left, right = (self._array(part, (n, n)) for part in flatquant.PARTS[:2] for n in self._stored(part).shape[:1])
        if not left.size or not right.size or self.shape[1] % (len(left) * len(right)):
            raise CheckpointError(
                f"{self.parts['left_trans']} and {self.parts['right_trans']} have {len(left)} and {len(right)} rows, "
                f"a layer of {list(self.shape)} needs two numbers whose product divides {self.shape[1]}"
            )
        ratio = self._array("clip_ratio", (1,))
        if not (ratio > 0).all():
            raise CheckpointError(f"{self.parts['clip_ratio']} holds {float(ratio[0])}, which is no part of a range")
        return flatquant.unpack(left, right, ratio)

    def _scheme(self) -> QuantizationScheme:
        weights = {
            "format": f"int{self.bits}",
            "granularity": "group" if self.grouped else "channel",
            "group_size": self.shape[1] // self.scale.shape[1] if self.grouped else None,
            "symmetric": self.zero_point is None,
        }
        inputs: dict[str, Any] | None = None
        if self.inputs is not None:
            inputs = {"format": "int8", "granularity": "tensor", "symmetric": self.inputs.zero_point is None}
        elif self.label.endswith("_DYNAMIC"):
            inputs = {"format": f"int{self.label[3]}", "granularity": "token", "dynamic": True}
        try:
            return named(validate(QuantizationScheme, {"weights": weights, "inputs": inputs}, "its scheme"))
        except SchemaError as error:
            raise CheckpointError(f"{self.name}: {error}") from None

    def weight(self) -> RawTensor:
        """Dequantized, float32 ``(out, in)``. What the layer multiplies its own input by is part of it."""
        args = self.numbers.scheme.weights
        assert args is not None
        codes = from_raw(self._stored("weight").read())
        codes = int4.unpack(codes) if self.packed else codes.T if self.transposed else codes
        tensor = QuantizedTensor(codes, self.scale, self.zero_point, args)
        fault = tensor_fault(tensor)
        if fault:
            raise CheckpointError(f"{self.name}: {fault}; the checkpoint is damaged")
        values = numerics.dequantize(tensor)
        if self.smooth is not None:
            values = values * self.smooth
        if self.inputs is not None and len(self.inputs.scale) > 1:
            values = values / self.inputs.scale
        return to_raw(values)
