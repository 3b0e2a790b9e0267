"""int8 KV caches (``C8``): a scale for every channel of the cached keys and values.

In a network (mindspore_gs 1.4.1) below the cell that caches; in msModelSlim's folder below ``k_proj`` and ``v_proj``,
as vllm-ascend 0.23 looks for them. A scale for several channels is repeated for each: neither takes fewer.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from gs_core import Array, CacheInfo, CacheNumbers, CheckpointError, QuantizationArgs, StaticInput
from gs_core.arrays import astype, dtype_name, from_raw, to_numpy
from gs_core.checks import scale_fault
from gs_core.interfaces import Site, SiteKind
from gs_core.storage import Checkpoint
from gs_golden_stick.parameters import float_bits
from gs_schemas.scheme import Granularity

LABEL = "C8"
KINDS: tuple[SiteKind, SiteKind] = ("key", "value")
_ASCEND: dict[SiteKind, tuple[str, str]] = {
    "key": ("k_proj.kv_cache_scale", "k_proj.kv_cache_offset"),
    "value": ("v_proj.kv_cache_scale", "v_proj.kv_cache_offset"),
}
_NETWORK: dict[SiteKind, tuple[str, str]] = {
    "key": ("_key_input_quantizer.t_scale", "_key_input_quantizer.t_zp"),
    "value": ("_value_input_quantizer.t_scale", "_value_input_quantizer.t_zp"),
}
_FUSED = ("quant_pa.k_v_scale_fusion", "quant_pa.k_v_zp_fusion")
_UNFUSED = tuple(f"quant_pa.{kind}_{what}_no_fusion" for kind in "kv" for what in ("scale", "zp"))
SUFFIXES = tuple(f".{name}" for name in (*sum([*_ASCEND.values(), *_NETWORK.values()], ()), *_FUSED, *_UNFUSED))
"""How the names of a cache's tensors end, in all layouts."""


def unsupported(cache: CacheInfo, args: QuantizationArgs) -> str | None:
    """Why no cache is held so, or ``None``."""
    if args.format != "int8" or args.dynamic or args.scale_format != "model":
        return "C8 is a static int8 cache with scales in the model's dtype"
    if args.granularity not in ("tensor", "head", "channel"):
        return f"C8 has a scale for each channel of a cache, not per {args.granularity}"
    if {site.kind for site in cache.sites} != set(KINDS):
        return "C8 is a cache of keys and values as attention reads them; set before_rope: false"
    return None


def ascend(cache: CacheInfo, numbers: CacheNumbers) -> dict[str, Array]:
    """float32 scales and offsets, ``(channels,)``."""
    found: dict[str, Array] = {}
    for kind, (scale, offset) in _ASCEND.items():
        scales, offsets = _channels(cache, numbers, kind)
        found |= {f"{cache.name}.{scale}": astype(scales, "float32"), f"{cache.name}.{offset}": offsets}
    return found


def network(cache: CacheInfo, numbers: CacheNumbers) -> dict[str, Array]:
    """What quantizes the input, and once more what the attention kernel dequantizes with: keys' and values' scales
    in one, ``(2, channels)``, with the offset that the kernel adds."""
    found: dict[str, Array] = {}
    pairs = {kind: _channels(cache, numbers, kind) for kind in KINDS}
    for kind, (scale, offset) in _NETWORK.items():
        scales, offsets = pairs[kind]
        found |= {f"{cache.name}.{scale}": scales, f"{cache.name}.{offset}": offsets.astype(np.int8)}
    joint, added = (np.stack([np.asarray(pairs[kind][n]) for kind in KINDS]) for n in (0, 1))
    if dtype_name(joint) == "bfloat16":
        fused = (astype(joint, "float16"), astype(-added, "float16"))
    else:
        fused = (float_bits(astype(joint, "float32")), -added.astype(np.int32))
    return found | dict(zip((f"{cache.name}.{name}" for name in _FUSED), fused, strict=True))


def _channels(cache: CacheInfo, numbers: CacheNumbers, kind: SiteKind) -> tuple[np.ndarray, np.ndarray]:
    """Scales in their dtype and offsets in float32, ``(channels,)``."""
    static = numbers.static[kind]
    assert static is not None, "a static cache has scales"
    features = next(site.features for site in cache.sites if site.kind == kind)
    scale = to_numpy(static.scale).reshape(-1)
    offset = np.zeros(scale.size) if static.zero_point is None else to_numpy(static.zero_point).reshape(-1)
    times = features // scale.size
    return np.repeat(scale, times), np.repeat(offset.astype(np.float32), times)


def read(checkpoint: Checkpoint, caches: Sequence[CacheInfo]) -> dict[str, CacheNumbers]:
    """The numbers of every cache that has scales. Raises ``CheckpointError`` for half of them, or of a wrong size."""
    found = {}
    for cache in caches:
        for names in (_ASCEND, _NETWORK):
            wanted = [f"{cache.name}.{name}" for pair in names.values() for name in pair]
            if any(name in checkpoint for name in wanted):
                found[cache.name] = _read(checkpoint, cache, names)
    return found


def _read(checkpoint: Checkpoint, cache: CacheInfo, names: Mapping[SiteKind, tuple[str, str]]) -> CacheNumbers:
    sites = {site.kind: site for site in cache.sites if site.kind in names}
    pairs = {
        kind: np.stack([_array(checkpoint, f"{cache.name}.{name}", site.features) for name in names[kind]])
        for kind, site in sites.items()
    }
    symmetric = not any(pair[1].any() for pair in pairs.values())
    granularity, counts = _granularity(sites, pairs)
    args = QuantizationArgs(format="int8", granularity=granularity, symmetric=symmetric)
    static = {kind: pair[:, :: pair.shape[1] // counts[kind]] for kind, pair in pairs.items()}
    return CacheNumbers(args, {kind: StaticInput(s, None if symmetric else z) for kind, (s, z) in static.items()})


def _granularity(
    sites: Mapping[SiteKind, Site], pairs: Mapping[SiteKind, np.ndarray]
) -> tuple[Granularity, Mapping[SiteKind, int]]:
    """What shares a scale and an offset, as far as their values tell, and how many of them each cache has."""
    choices: dict[Granularity, dict[SiteKind, int]] = {
        "tensor": dict.fromkeys(sites, 1),
        "head": {kind: site.heads for kind, site in sites.items()},
    }
    for granularity, counts in choices.items():
        parts = [pair.reshape(2, counts[kind], -1) for kind, pair in pairs.items()]
        if all((part == part[:, :, :1]).all() for part in parts):
            return granularity, counts
    return "channel", {kind: site.features for kind, site in sites.items()}


def _array(checkpoint: Checkpoint, name: str, features: int) -> np.ndarray:
    stored = from_raw(checkpoint[name].read())
    values = astype(stored, "float32").reshape(-1)
    fault = scale_fault(stored) if name.endswith("scale") else None
    if fault is None and not np.isfinite(values).all():
        fault = "contains NaN or infinity"
    if fault:
        raise CheckpointError(f"{name}: {fault}; the checkpoint is damaged")
    if values.size != features:
        raise CheckpointError(f"{name} has {values.size} elements, the cache has {features} channels")
    return values
