"""The format as a stage plugin: pack a tensor, write a shard for each block, finish the folder, read one back."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gs_compressed_tensors import caches, engines, transforms
from gs_compressed_tensors.config import INTEGER, METHOD, PACKED, layout, scheme_of, to_config
from gs_compressed_tensors.packing import pack_rows, unpack_rows
from gs_compressed_tensors.types import check_types
from gs_core import (
    Array,
    CacheInfo,
    CacheNumbers,
    CheckpointError,
    CheckpointFormat,
    Finished,
    LayerInfo,
    Output,
    QuantizationArgs,
    QuantizationScheme,
    QuantizedTensor,
    StaticInput,
    hookimpl,
    numerics,
)
from gs_core.arrays import FLOAT_DTYPES, RawTensor, from_raw, to_numpy, to_raw
from gs_core.checks import input_fault, tensor_fault
from gs_core.engines import fit_experts, fused_conflicts
from gs_core.interfaces import Engine, LayerNumbers
from gs_core.storage import INDEX, Checkpoint, DerivedTensor, TensorSpec, copy_file, write_json, write_safetensors


class CompressedTensors(CheckpointFormat):
    """``pack-quantized`` for weight-only integers, ``int-quantized`` for int8 weights and activations."""

    quant_method = METHOD
    holds_online = holds_keys = frozenset({"hadamard"})

    def unsupported(self, layer: LayerInfo, scheme: QuantizationScheme) -> str | None:
        weights, inputs = scheme.weights, scheme.inputs
        assert weights is not None
        if weights.number.kind != "int" or weights.scale_format != "model":
            return (
                f"compressed_tensors here holds signed integers with scales in the model's dtype, not {weights.format}"
            )
        if weights.granularity not in ("tensor", "channel", "group"):
            return f"compressed_tensors here holds scales per tensor, channel or group, not per {weights.granularity}"
        if inputs is None:
            if weights.granularity == "tensor":
                return "pack-quantized weights need scales per channel or group, not per tensor"
            return None
        if (weights.format, inputs.format) not in (("int8", "int8"), ("int4", "int8"), ("int4", "int4")):
            return (
                "int-quantized holds int8 or int4 weights before int8 activations and int4 before int4, not "
                f"{weights.format} and {inputs.format}"
            )
        if weights.granularity == "group" and weights.bits == 8:
            return "engines multiply int8 by int8 with scales per channel or tensor, not per group"
        if inputs.granularity != ("token" if inputs.dynamic else "tensor"):
            return f"{inputs.format} activations are dynamic per token or static per tensor"
        if not weights.symmetric:
            return "integer products need symmetric weights"
        return None

    def unsupported_cache(self, cache: CacheInfo, args: QuantizationArgs) -> str | None:
        return caches.unsupported(cache, args)

    def fit(self, layer: LayerInfo, scheme: QuantizationScheme) -> tuple[QuantizationScheme, str] | None:
        return fit_experts(layer, scheme)

    def layout(self, scheme: QuantizationScheme) -> str:
        return layout(scheme)

    def conflicts(self, layers: Mapping[str, QuantizationScheme | None]) -> list[str]:
        """Of fused layers, and of caches, all of which have one scheme."""
        cached = {name: scheme.kv_cache for name, scheme in layers.items() if scheme and scheme.weights is None}
        return caches.conflicts(cached) + fused_conflicts(layers)

    def remarks(self, online: Collection[str], keys: Collection[str]) -> Sequence[str]:
        found = []
        if online:
            found.append(
                "the inputs of layers are transformed at run time (transform_config in config.json). transformers 5.23 "
                "ignores this, so the folder has no quant_method, and engines refuse it; gsq eval reads it. "
                "For a folder that engines load, set r4: false for hadamard"
            )
        if keys:
            found.append(
                "queries and cached keys are rotated at run time (transform_config in config.json). transformers 5.23 "
                "and vLLM 0.32 ignore this, so the folder has no quant_method, and engines refuse it; gsq eval reads "
                "it. For a folder that engines load, set r3: false for hadamard"
            )
        return found

    def recognises(self, folder: Path, config: Mapping[str, Any]) -> bool:
        """True for a folder of compressed-tensors, with or without transforms at run time."""
        return transforms.method(config.get("quantization_config") or {}) == METHOD

    def engines(self, schemes: Mapping[str, QuantizationScheme], online: bool) -> Sequence[Engine]:
        return engines.engines(schemes, online)

    @hookimpl
    def pack(self, tensor: QuantizedTensor, inputs: StaticInput | None, layout: str) -> dict[str, Array]:
        codes, bits = to_numpy(tensor.codes), tensor.args.bits
        arrays: dict[str, Array] = {}
        if layout == PACKED:
            arrays["weight_packed"] = pack_rows(codes, bits)
            arrays["weight_scale"] = tensor.scale
            arrays["weight_shape"] = np.array(tensor.shape, np.int64)
            if tensor.zero_point is not None:
                zero_point = np.ascontiguousarray(to_numpy(tensor.zero_point).T)
                arrays["weight_zero_point"] = np.ascontiguousarray(pack_rows(zero_point, bits).T)
        else:
            arrays["weight"] = codes
            per_tensor = tensor.args.granularity == "tensor"
            arrays["weight_scale"] = tensor.scale.reshape(1) if per_tensor else tensor.scale
        if inputs is not None:
            arrays["input_scale"] = inputs.scale
            if inputs.zero_point is not None:
                arrays["input_zero_point"] = to_numpy(inputs.zero_point).astype(np.int8)
        return arrays

    def pack_cache(self, cache: CacheInfo, numbers: CacheNumbers) -> dict[str, Array]:
        return caches.pack(cache, numbers)

    @hookimpl
    def export(self, output: Output) -> Sequence[str]:
        if output.final is not None:
            return self._finish(output, output.final)
        name = f"model-{output.part + 1:05d}-of-{output.parts:05d}.safetensors"
        write_safetensors(output.folder / name, output.tensors)
        return [name]

    def _finish(self, output: Output, final: Finished) -> list[str]:
        weight_map = {tensor: file for file, tensors in final.shards.items() for tensor in tensors}
        total = sum(size for tensors in final.shards.values() for size in tensors.values())
        write_json(output.folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
        quantization = to_config(final.schemes, final.kept, final.aliases)
        quantization["kv_cache_scheme"] = caches.to_config(final.caches)
        aliases = {**final.aliases, **{cache.name: cache.alias for cache in final.caches if cache.alias}}
        online = transforms.to_config(final.online, final.keys, aliases)
        if online is not None:
            quantization = transforms.requiring(quantization, online)
        elif not final.caches and engines.dequantizes(final.schemes):
            quantization["dequantize"] = True  # read by transformers' CompressedTensorsConfig; other readers ignore it
        config = final.config | {"quantization_config": quantization}
        write_json(output.folder / "config.json", config)
        for file in final.files:
            copy_file(file, output.folder / file.name)
        return [INDEX, "config.json", *(file.name for file in final.files)]

    def read(self, checkpoint: Checkpoint, config: Mapping[str, Any]) -> tuple[Checkpoint, dict[str, LayerNumbers]]:
        quantization = config["quantization_config"]
        check_types(quantization)
        transforms.check(quantization)
        numbers: dict[str, LayerNumbers] = {}
        removed = caches.names(checkpoint) if quantization.get("kv_cache_scheme") else set()
        added: dict[str, DerivedTensor] = {}
        for layer in _quantized_layers(checkpoint):
            scheme = scheme_of(quantization, layer)
            if scheme is None or scheme.weights is None:
                raise CheckpointError(
                    f"{layer} is quantized, but quantization_config has no scheme for it; restore config.json"
                )
            weight = _stored(checkpoint, layer, scheme)
            removed |= {f"{layer}.{s}" for s in _SUFFIXES if f"{layer}.{s}" in checkpoint}
            added[weight.name] = weight
            online = transforms.input_map(quantization, layer)
            numbers[layer] = LayerNumbers(scheme, _static_input(checkpoint, layer, scheme), online)
        return checkpoint.replacing(removed, added), numbers

    def read_caches(
        self, checkpoint: Checkpoint, config: Mapping[str, Any], infos: Sequence[CacheInfo]
    ) -> dict[str, CacheNumbers]:
        return caches.read(checkpoint, config["quantization_config"], infos)


INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
_SUFFIXES = (
    "weight", "weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "input_scale", "input_zero_point",
)  # fmt: skip


def _stored(checkpoint: Checkpoint, layer: str, scheme: QuantizationScheme) -> DerivedTensor:
    """The layer's weight, dequantized when read, in float32. Raises ``CheckpointError`` for what does not fit."""
    assert scheme.weights is not None
    if layout(scheme) == INTEGER:
        shape = checkpoint[f"{layer}.weight"].shape
    else:
        TensorSpec(INTEGERS, [(2,)]).check(checkpoint[f"{layer}.weight_shape"])
        shape = tuple(int(n) for n in _array(checkpoint, f"{layer}.weight_shape"))
    if len(shape) != 2 or min(shape) < 1:
        raise CheckpointError(f"{layer}.weight_shape is {list(shape)}, which is no matrix")
    why = numerics.objection((shape[0], shape[1]), scheme.weights)
    if why:
        raise CheckpointError(f"{layer}: {why}")
    for suffix, declared in _declared(shape[0], shape[1], scheme).items():
        declared.check(checkpoint[f"{layer}.{suffix}"])

    def make() -> RawTensor:
        tensor = _tensor(checkpoint, layer, scheme, (shape[0], shape[1]))
        fault = tensor_fault(tensor)
        if fault:
            raise CheckpointError(f"{layer}: {fault}; the checkpoint is damaged")
        return to_raw(numerics.dequantize(tensor))

    return DerivedTensor(f"{layer}.weight", "float32", shape, make)


def _quantized_layers(checkpoint: Checkpoint) -> list[str]:
    """Layers with at least one quantization parameter or with integer codes."""
    found = {}
    for name, tensor in checkpoint.tensors.items():
        layer, _, suffix = name.rpartition(".")
        if suffix in _SUFFIXES[1:] or (suffix == "weight" and tensor.dtype in INTEGERS):
            found[layer] = True
    return list(found)


def _declared(rows: int, columns: int, scheme: QuantizationScheme) -> dict[str, TensorSpec]:
    """The tensors of a layer with this shape. Other programs leave out axes of size 1 in scales."""
    args = scheme.weights
    assert args is not None
    groups = columns // args.group_size if args.group_size else 1
    scale_shape = (1,) if args.granularity == "tensor" else (rows, groups)
    found = {"weight_scale": TensorSpec(FLOAT_DTYPES, [scale_shape], squeezed=True)}
    if layout(scheme) == PACKED:
        found["weight_packed"] = TensorSpec(["int32"], [(rows, -(-columns * args.bits // 32))])
        if not args.symmetric:
            found["weight_zero_point"] = TensorSpec(["int32"], [(-(-rows * args.bits // 32), groups)])
    else:
        found["weight"] = TensorSpec(["int8"], [(rows, columns)])
    if scheme.inputs is not None and not scheme.inputs.dynamic:
        found["input_scale"] = TensorSpec(FLOAT_DTYPES, [(1,)], squeezed=True)
        if not scheme.inputs.symmetric:
            found["input_zero_point"] = TensorSpec(INTEGERS, [(1,)], squeezed=True)
    return found


def _tensor(checkpoint: Checkpoint, layer: str, scheme: QuantizationScheme, shape: tuple[int, int]) -> QuantizedTensor:
    args = scheme.weights
    assert args is not None
    scale = _array(checkpoint, f"{layer}.weight_scale")
    zero_point = None
    if layout(scheme) == INTEGER:
        codes = _array(checkpoint, f"{layer}.weight")
    else:
        codes = unpack_rows(_array(checkpoint, f"{layer}.weight_packed"), args.bits, shape[1])
        if not args.symmetric:
            packed = np.ascontiguousarray(_array(checkpoint, f"{layer}.weight_zero_point").T)
            zero_point = np.ascontiguousarray(unpack_rows(packed, args.bits, shape[0]).T)
    return QuantizedTensor(codes, scale.reshape(-1, 1) if scale.ndim < 2 else scale, zero_point, args)


def _static_input(checkpoint: Checkpoint, layer: str, scheme: QuantizationScheme) -> StaticInput | None:
    args = scheme.inputs
    if args is None or args.dynamic:
        return None
    zero_point = None
    if f"{layer}.input_zero_point" in checkpoint:
        zero_point = _array(checkpoint, f"{layer}.input_zero_point").astype(np.float32).reshape(1)
    found = StaticInput(_array(checkpoint, f"{layer}.input_scale").astype(np.float32).reshape(1), zero_point)
    fault = input_fault(found, args)
    if fault:
        raise CheckpointError(f"{layer}.input_scale: {fault}; the checkpoint is damaged")
    return found


def _array(checkpoint: Checkpoint, name: str) -> np.ndarray:
    return from_raw(checkpoint[name].read())
