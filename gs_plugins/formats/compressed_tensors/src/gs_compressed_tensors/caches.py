"""Quantized KV caches: ``kv_cache_scheme`` in the configuration, ``k_scale`` and ``v_scale`` beside the attention's
layers. One scale each, ``(1,)``, or one for each key-value head, ``(heads, 1, 1)``.

Source: ``initialize_qparams`` of the compressed-tensors library 0.20, and how vLLM 0.32 loads it, which takes
symmetric fp8 alone. The library computes int8 too.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gs_compressed_tensors.transforms import key_map
from gs_core import (
    Array,
    CacheInfo,
    CacheNumbers,
    CheckpointError,
    QuantizationArgs,
    QuantizationScheme,
    StaticInput,
)
from gs_core.arrays import astype, from_raw, namespace
from gs_core.checks import scale_fault
from gs_core.storage import Checkpoint

STRATEGIES = {"tensor": "tensor", "head": "attn_head"}
TYPES = {"fp8_e4m3": "float", "int8": "int"}
SCALES = {"key": "k_scale", "value": "v_scale"}


def unsupported(cache: CacheInfo, args: QuantizationArgs) -> str | None:
    """Why no cache is held so, or ``None``."""
    fix = "; use fp8_e4m3 or int8, granularity tensor or head, symmetric and static"
    if args.format not in TYPES:
        return f"compressed-tensors holds fp8_e4m3 and int8 caches, not {args.format}{fix}"
    if args.dynamic:
        return f"compressed-tensors has no scales found at run time for a cache{fix}"
    if not args.symmetric:
        return f"engines quantize caches of compressed-tensors without a zero point{fix}"
    if args.granularity not in STRATEGIES:
        return f"compressed-tensors holds cache scales per tensor or head, not per {args.granularity}{fix}"
    if args.scale_format != "model":
        return "compressed-tensors stores cache scales in the model's dtype; leave scale_format out"
    if any(site.kind == "unrotated_key" for site in cache.sites):
        return "engines of compressed-tensors cache rotated keys; set before_rope: false"
    return None


def conflicts(caches: Mapping[str, QuantizationArgs | None]) -> list[str]:
    """The format says once how every cache is quantized. ``caches``: by name."""
    if len({*caches.values()}) < 2:
        return []
    rendered = {name: QuantizationScheme(kv_cache=args).describe() for name, args in caches.items()}
    first, other = next((a, b) for a in rendered for b in rendered if rendered[a] != rendered[b])
    return [
        f"{first} is {rendered[first]} and {other} is {rendered[other]}: compressed-tensors has one kv_cache_scheme "
        "for all; give every attention module the same kv_cache"
    ]


def to_config(caches: Mapping[CacheInfo, QuantizationArgs]) -> dict[str, Any] | None:
    """``kv_cache_scheme``."""
    args = next(iter(caches.values()), None)
    if args is None:
        return None
    return {
        "num_bits": args.bits,
        "type": TYPES[args.format],
        "symmetric": True,
        "strategy": STRATEGIES[args.granularity],
        "group_size": None,
        "block_structure": None,
        "dynamic": False,
        "actorder": None,
        "observer": args.observer,
    }


def pack(cache: CacheInfo, numbers: CacheNumbers) -> dict[str, Array]:
    """``k_scale`` and ``v_scale`` by their full names."""
    found = {}
    for kind, static in numbers.static.items():
        assert static is not None
        shape = (1,) if numbers.args.granularity == "tensor" else (-1, 1, 1)
        found[f"{cache.name}.{SCALES[kind]}"] = namespace(static.scale).reshape(static.scale, shape)
    return found


def names(checkpoint: Checkpoint) -> set[str]:
    """The tensors of a checkpoint that belong to caches."""
    return {name for name in checkpoint.tensors if name.endswith(tuple(f".{scale}" for scale in SCALES.values()))}


def read(
    checkpoint: Checkpoint, quantization: Mapping[str, Any], caches: Sequence[CacheInfo]
) -> dict[str, CacheNumbers]:
    """The numbers of every cache. Raises ``CheckpointError`` for a scheme that cannot be read or a missing scale."""
    scheme = quantization.get("kv_cache_scheme")
    if scheme is None:
        return {}
    args = _args(scheme)
    found = {}
    for cache in caches:
        static = {
            site.kind: StaticInput(_scale(checkpoint, f"{cache.name}.{SCALES[site.kind]}", args, site.heads))
            for site in cache.sites
            if site.kind in SCALES
        }
        heads = [site.features // site.heads for site in cache.sites if site.kind == "key"]
        found[cache.name] = CacheNumbers(args, static, key_map(quantization, cache.name, *heads) if heads else None)
    return found


def _args(scheme: Mapping[str, Any]) -> QuantizationArgs:
    formats = {kind: name for name, kind in TYPES.items()}
    granularities = {strategy: name for name, strategy in STRATEGIES.items()}
    kind, strategy = scheme.get("type"), scheme.get("strategy")
    static = scheme.get("symmetric") and not scheme.get("dynamic") and scheme.get("num_bits") == 8
    if kind not in formats or strategy not in granularities or not static:
        raise CheckpointError(f"cannot read this kv_cache_scheme of compressed-tensors: {dict(scheme)}")
    return QuantizationArgs(format=formats[kind], granularity=granularities[strategy])


def _scale(checkpoint: Checkpoint, name: str, args: QuantizationArgs, heads: int) -> np.ndarray:
    if name not in checkpoint:
        raise CheckpointError(f"{checkpoint.folder} has a kv_cache_scheme, but no '{name}'")
    scale = from_raw(checkpoint[name].read()).reshape(-1)
    fault = scale_fault(scale)
    if fault:
        raise CheckpointError(f"{name}: {fault}; the checkpoint is damaged")
    scale = astype(scale, "float32")
    wanted = 1 if args.granularity == "tensor" else heads
    if scale.size != wanted:
        raise CheckpointError(f"{name} has {scale.size} elements, its scheme needs {wanted}")
    return scale
