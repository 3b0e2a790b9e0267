"""What happens to what attention modules cache: a row for each, and whether it can."""

from collections.abc import Mapping
from dataclasses import replace

from gs_core import numerics
from gs_core.interfaces import Algorithm, CacheInfo, CheckpointFormat, Model
from gs_core.planning.loading import names_of
from gs_core.planning.plan import CacheRow
from gs_core.planning.problems import Problems
from gs_schemas import AlgorithmSpec, QuantizationArgs, Recipe


def cache_rows(
    recipe: Recipe,
    model: Model,
    instances: Mapping[str, AlgorithmSpec],
    algorithms: Mapping[str, Algorithm],
    checkpoint_format: CheckpointFormat,
    problems: Problems,
) -> tuple[CacheRow, ...]:
    """A row for every attention module, where a scheme of the recipe quantizes what they cache."""
    treating = [name for name, algorithm in algorithms.items() if {*algorithm.kinds} - {"input"}]
    if not any(s and s.kv_cache for s in (recipe.scheme, *(o.scheme for o in recipe.overrides))):
        for name in treating:
            problems.add(f"algorithm '{name}' has nothing to do: no scheme has kv_cache; add one, or remove it")
        return ()
    if not model.caches:
        problems.add(f"scheme.kv_cache: there is no KV cache to quantize: {model.uncached}; remove it")
    rows = []
    for cache in model.caches:
        scheme, specs, reason = recipe.rule_for(cache.name)
        args = scheme.kv_cache if scheme else None
        asked = names_of(specs, instances)
        named = [name for name in asked if name in treating]
        mapping = tuple(name for name in asked if args is not None and algorithms[name].maps_keys)
        if args is None:
            reason = reason if scheme is None else f"{reason}: its scheme has no kv_cache"
        elif len(named) != 1:
            problems.add(_one_of(treating, named), cache.name)
        else:
            treated = algorithms[named[0]].kinds
            narrowed = replace(cache, sites=tuple(site for site in cache.sites if site.kind in treated))
            for why in _cache_objections(narrowed, args, named[0], algorithms[named[0]], checkpoint_format):
                problems.add(why, cache.name)
            for name in mapping:
                for why in _key_objections(narrowed, named[0], name, algorithms[name].maps_keys, checkpoint_format):
                    problems.add(why, cache.name)
            cache = narrowed
        rows.append(CacheRow(cache, args, named[0] if args and named else "", reason, mapping))
    return tuple(rows)


def _one_of(treating: list[str], named: list[str]) -> str:
    if named:
        return f"scheme.kv_cache: {' and '.join(named)} both treat the KV cache; keep one of them"
    fix = treating[0] if treating else "kv_cache"
    return f"scheme.kv_cache: none of its algorithms treats the KV cache; add '{fix}' to them, or remove it"


def _cache_objections(
    cache: CacheInfo, args: QuantizationArgs, name: str, algorithm: Algorithm, checkpoint_format: CheckpointFormat
) -> list[str]:
    """Why this cache cannot be treated so; empty when it can."""
    found = []
    if args.after is not None:
        found.append("scheme.kv_cache.after: no installed algorithm quantizes in two stages; remove it")
    if args.number.kind == "shared_exponent":
        found.append(f"scheme.kv_cache.format: numerics for '{args.format}' are not installed")
    found += [why for s in cache.sites if (why := numerics.cache_objection(s.features, s.heads, args))]
    missing = {*algorithm.kinds} - {site.kind for site in cache.sites} - {"input"}
    if "unrotated_key" in missing:
        missing -= {"unrotated_key"}
        found.append(f"algorithm '{name}' would quantize keys before their rotation, but {cache.rotated_only}")
    if missing:
        found.append(f"algorithm '{name}' finds no {' and no '.join(sorted(missing))} here")
    found += [f"algorithm '{name}': {why}" for why in [algorithm.unsupported_cache(cache, args)] if why]
    found += [why for why in [checkpoint_format.unsupported_cache(cache, args)] if why]
    return list(dict.fromkeys(found))


def _key_objections(
    cache: CacheInfo, scaling: str, name: str, kinds: Mapping[str, str], checkpoint_format: CheckpointFormat
) -> list[str]:
    """Why the keys of this cache cannot be mapped so; empty when they can."""
    fixes = " or ".join(kinds.values())
    if not any(site.kind == "key" for site in cache.sites):
        return [f"algorithm '{name}' maps keys after their rotation, and '{scaling}' quantizes none of those; {fixes}"]
    return [
        f"algorithm '{name}': this checkpoint format holds no {kind} map of cached keys; {fix}"
        for kind, fix in kinds.items()
        if kind not in checkpoint_format.holds_keys
    ]
