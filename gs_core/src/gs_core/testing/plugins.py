"""The smallest plugin of each kind, for tests of what surrounds them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gs_core import numerics
from gs_core.arrays import Array, RawTensor, from_raw, namespace, to_raw
from gs_core.errors import CheckpointError
from gs_core.hookspecs import Record, hookimpl
from gs_core.interfaces import (
    Accumulator,
    Algorithm,
    Block,
    CacheInfo,
    CacheNumbers,
    ChannelScale,
    CheckpointFormat,
    Data,
    Fold,
    FoldTransform,
    Layer,
    LayerInfo,
    LayerNumbers,
    Needs,
    Output,
    Site,
    SiteKind,
    SiteTransform,
    StaticInput,
    Transform,
)
from gs_core.linear_map import LinearMap
from gs_core.quantized import QuantizedTensor
from gs_core.storage import INDEX, Checkpoint, DerivedTensor, copy_file, write_json, write_safetensors
from gs_schemas import QuantizationArgs, QuantizationScheme


class Rounding(Algorithm):
    """Every weight to its nearest code."""

    @hookimpl
    def quantize(self, layers: Sequence[Layer]) -> dict[str, QuantizedTensor]:
        return {layer.name: numerics.quantize_weight(layer.weight(), layer.args, layer.dtype) for layer in layers}


class Maxima(Accumulator):
    """Largest magnitude of each channel, ``(features,)``."""

    maxima: Array = None

    def update(self, x: Array) -> None:
        xp = namespace(x)
        here = xp.max(xp.abs(x), axis=0)
        self.maxima = here if self.maxima is None else xp.maximum(self.maxima, here)

    def result(self) -> Array:
        return self.maxima


class Levelling(Algorithm):
    """Folds the square root of every channel's maximum into its producer. Its accumulator cannot be rescaled, so
    each site it touched is observed again."""

    @hookimpl
    def observe(self, site: Site, scheme: QuantizationScheme) -> Accumulator | None:
        return Maxima() if scheme.inputs else None

    @hookimpl
    def smooth(self, block: Block, observed: Mapping[str, Any]) -> list[ChannelScale]:
        return [ChannelScale(fold, self._scale(fold, observed)) for fold in block.folds() if fold.sites[0] in observed]

    def _scale(self, fold: Fold, observed: Mapping[str, Any]) -> Array:
        largest = fold.reduce_max([observed[site] for site in fold.sites if site in observed])
        xp = namespace(largest)
        return xp.sqrt(xp.where(largest > 0, largest, xp.ones_like(largest)))


class Widest(Accumulator):
    """One scale for the largest magnitude of what is cached."""

    def __init__(self, site: Site, args: QuantizationArgs):
        self.maxima, self.site, self.args = Maxima(), site, args

    def update(self, x: Array) -> None:
        self.maxima.update(x)

    def result(self) -> StaticInput:
        largest, dtype = self.maxima.result(), numerics.scale_dtype(self.args, self.site.dtype)
        return StaticInput(*numerics.cache_params(-largest, largest, None, self.site.heads, self.args, dtype))


class Caching(Algorithm):
    """Keys and values under the widest scale."""

    @property
    def kinds(self) -> tuple[SiteKind, ...]:
        return ("key", "value")

    def unsupported_cache(self, cache: CacheInfo, args: QuantizationArgs) -> str | None:
        return None if args.symmetric and args.observer == "minmax" else "it knows magnitudes alone"

    @hookimpl
    def observe(self, site: Site, scheme: QuantizationScheme) -> Accumulator | None:
        args = scheme.kv_cache
        return Widest(site, args) if args is not None and not args.dynamic else None


class Means(Accumulator):
    """Mean of what arrives, and of what would if no block before were quantized, ``(2, features)``."""

    paired = True

    def __init__(self) -> None:
        self._sums: list[Array] = []

    def update(self, x: Array) -> None:
        raise AssertionError("it takes pairs")

    def update_pair(self, x: Array, unquantized: Array | None) -> None:
        xp = namespace(x)
        both = [xp.mean(x, axis=0), xp.mean(x if unquantized is None else unquantized, axis=0)]
        self._sums.append(xp.stack(both))

    def result(self) -> Array:
        return sum(self._sums[1:], self._sums[0]) / len(self._sums)


class Centring(Algorithm):
    """Rounds, and reports how far the quantized blocks before have moved each site and the block's output."""

    def needs(self, scheme: QuantizationScheme) -> Needs:
        return Needs(data=True, float_stream=True)

    @hookimpl
    def observe(self) -> Accumulator:
        return Means()

    @hookimpl
    def quantize(
        self, block: Block, layers: Sequence[Layer], observed: Mapping[str, Any], data: Data, record: Record
    ) -> dict[str, QuantizedTensor]:
        moved = {}
        for site, means in observed.items():
            xp = namespace(means)
            moved[site] = float(xp.max(xp.abs(means[0, ...] - means[1, ...])))
        errors = []
        for batch, target in zip(data.batches, data.targets, strict=True):
            got, wanted = from_raw(to_raw(block.run(*batch)["hidden"])), from_raw(target["hidden"])
            errors.append(float(abs(got - wanted).max()))
        record(moved=moved, errors=errors)
        return {layer.name: numerics.quantize_weight(layer.weight(), layer.args, layer.dtype) for layer in layers}


class Turning(Algorithm):
    """Rotates the residual stream and each head's values, and leaves a pair of matrices before every other layer that
    no norm feeds to be multiplied when the model runs."""

    @hookimpl
    def smooth(self, block: Block) -> list[Transform]:
        folds = block.folds()
        heads: list[Transform] = [FoldTransform(fold, turn(fold.head)) for fold in folds if fold.head > 1]
        taken = {site for fold in folds if fold.head > 1 or fold.producer not in block.layers for site in fold.sites}
        left = [site for site in block.sites.values() if site.layers and site.name not in taken]
        return heads + [SiteTransform(site.name, _pair(site.features)) for site in left]

    def residual(self, features: int) -> LinearMap | None:
        return turn(features)

    def leaves_online(self, layer: LayerInfo, hidden: int) -> dict[str, str]:
        return {} if layer.shape[1] == hidden else {"kronecker": "use another algorithm"}

    def remarks(self, layers: Sequence[LayerInfo]) -> list[str]:
        return [f"turns {len(layers)} layers"]


def turn(size: int) -> LinearMap:
    """A rotation, the same each time."""
    matrix = np.linalg.qr(np.random.default_rng(size).standard_normal((size, size)))[0]
    return LinearMap((matrix.astype(np.float32),), orthogonal=True)


def _pair(features: int) -> LinearMap:
    left = next(size for size in range(int(features**0.5), 0, -1) if features % size == 0)
    right = np.diag(np.linspace(0.5, 2, features // left, dtype=np.float32))
    return LinearMap((*turn(left).factors, right))


class Plain(CheckpointFormat):
    """Codes, scales and zero points as they are; the scheme of every layer in ``config.json``."""

    quant_method = "plain"
    holds_online = frozenset({"scale", "hadamard", "rotation", "kronecker", "clipped"})
    holds_keys = frozenset({"hadamard", "rotation", "kronecker"})

    @hookimpl
    def pack(
        self, tensor: QuantizedTensor, inputs: StaticInput | None, layout: str, online: LinearMap | None
    ) -> dict[str, Array]:
        arrays = {"codes": tensor.codes, "scale": tensor.scale, "zero_point": tensor.zero_point}
        if inputs is not None:
            arrays |= {"input_scale": inputs.scale, "input_zero_point": inputs.zero_point}
        if online is not None:
            arrays |= {f"online_{name}": array for name, array in online.arrays().items()}
        return {name: array for name, array in arrays.items() if array is not None}

    @hookimpl
    def export(self, output: Output) -> Sequence[str]:
        final = output.final
        if final is None:
            name = f"model-{output.part + 1:05d}-of-{output.parts:05d}.safetensors"
            write_safetensors(output.folder / name, output.tensors)
            return [name]
        weight_map = {tensor: file for file, tensors in final.shards.items() for tensor in tensors}
        write_json(output.folder / INDEX, {"metadata": {}, "weight_map": weight_map})
        schemes = {layer: json.loads(scheme.model_dump_json()) for layer, scheme in final.schemes.items()}
        caches = {
            cache.name: [[site.kind for site in cache.sites], json.loads(args.model_dump_json())]
            for cache, args in final.caches.items()
        }
        quantization = {
            "quant_method": self.quant_method,
            "layers": schemes,
            "kept": list(final.kept),
            "caches": caches,
            "online": dict(final.online),
            "keys": dict(final.keys),
        }
        write_json(output.folder / "config.json", final.config | {"quantization_config": quantization})
        for file in final.files:
            copy_file(file, output.folder / file.name)
        return [INDEX, "config.json", *(file.name for file in final.files)]

    def read(self, checkpoint: Checkpoint, config: Mapping[str, Any]) -> tuple[Checkpoint, dict[str, LayerNumbers]]:
        layers = config["quantization_config"].get("layers")
        if not isinstance(layers, dict):
            raise CheckpointError(f"{checkpoint.folder}: quantization_config has no 'layers'")
        schemes = {layer: QuantizationScheme.model_validate(scheme) for layer, scheme in layers.items()}
        packed = [name for name in checkpoint.tensors if name.rpartition(".")[0] in schemes or ".cached_" in name]
        weights = {f"{layer}.weight": _weight(checkpoint, layer, scheme) for layer, scheme in schemes.items()}
        online = {n: _online(checkpoint, n, d) for n, d in config["quantization_config"].get("online", {}).items()}
        numbers = {
            layer: LayerNumbers(scheme, _inputs(checkpoint, layer), online.get(layer))
            for layer, scheme in schemes.items()
        }
        return checkpoint.replacing(packed, weights), numbers

    def unsupported_cache(self, cache: CacheInfo, args: QuantizationArgs) -> str | None:
        return None

    def pack_cache(self, cache: CacheInfo, numbers: CacheNumbers) -> dict[str, Array]:
        arrays = {}
        for kind, static in numbers.static.items():
            if static is not None:
                arrays[f"{cache.name}.cached_{kind}.scale"] = static.scale
                if static.zero_point is not None:
                    arrays[f"{cache.name}.cached_{kind}.zero_point"] = static.zero_point
        maps = {} if numbers.online is None else numbers.online.arrays()
        return arrays | {f"{cache.name}.cached_key.online_{name}": array for name, array in maps.items()}

    def read_caches(
        self, checkpoint: Checkpoint, config: Mapping[str, Any], infos: Sequence[CacheInfo]
    ) -> dict[str, CacheNumbers]:
        quantization = config["quantization_config"]
        keys = {n: _online(checkpoint, f"{n}.cached_key", d) for n, d in quantization.get("keys", {}).items()}
        return {
            name: CacheNumbers(
                QuantizationArgs.model_validate(args),
                {kind: _static(checkpoint, f"{name}.cached_{kind}.") for kind in kinds},
                keys.get(name),
            )
            for name, (kinds, args) in quantization.get("caches", {}).items()
        }


def _weight(checkpoint: Checkpoint, layer: str, scheme: QuantizationScheme) -> DerivedTensor:
    rows, columns = checkpoint[f"{layer}.codes"].shape
    args = scheme.weights
    assert args is not None

    def make() -> RawTensor:
        codes, scale, zero_point = (_array(checkpoint, f"{layer}.{part}") for part in ("codes", "scale", "zero_point"))
        return to_raw(numerics.dequantize(QuantizedTensor(codes, scale, zero_point, args)))

    return DerivedTensor(f"{layer}.weight", "float32", (rows, columns), make)


def _inputs(checkpoint: Checkpoint, layer: str) -> StaticInput | None:
    return _static(checkpoint, f"{layer}.input_")


def _static(checkpoint: Checkpoint, prefix: str) -> StaticInput | None:
    scale, zero_point = (_array(checkpoint, f"{prefix}{part}") for part in ("scale", "zero_point"))
    return None if scale is None else StaticInput(scale, zero_point)


def _online(checkpoint: Checkpoint, layer: str, description: Mapping[str, Any]) -> LinearMap:
    prefix = f"{layer}.online_"
    names = [name for name in checkpoint.tensors if name.startswith(prefix)]
    return LinearMap.restore(description, {n.removeprefix(prefix): from_raw(checkpoint[n].read()) for n in names})


def _array(checkpoint: Checkpoint, name: str) -> np.ndarray | None:
    return from_raw(checkpoint[name].read()) if name in checkpoint else None
