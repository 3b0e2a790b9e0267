"""The plan: every layer's adapter, algorithms, scheme, format and kernel, with the reason, before a weight is read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gs_core import discovery, kernels, numerics
from gs_core.errors import GoldenStickError, PlanError, PluginError
from gs_core.interfaces import Algorithm, CacheInfo, CheckpointFormat, LayerInfo, Model, Needs, Request
from gs_core.stages import check_hooks, implements
from gs_schemas import (
    AlgorithmSpec,
    QuantizationArgs,
    QuantizationScheme,
    Recipe,
    SchemaError,
    matches,
    named,
    validate,
)


@dataclass(frozen=True)
class Row:
    """What happens to one layer, and why. ``scheme`` is ``None`` when it stays in floating point."""

    layer: LayerInfo
    scheme: QuantizationScheme | None
    algorithms: tuple[str, ...]
    kernel: str
    reason: str

    @property
    def quantizer(self) -> str:
        return self.algorithms[-1]


@dataclass(frozen=True)
class CacheRow:
    """What happens to what one attention module caches, and why. ``args`` is ``None`` when it stays in floating
    point; ``cache.sites`` are those that are quantized; ``algorithm`` observes them; ``mapping`` map its keys."""

    cache: CacheInfo
    args: QuantizationArgs | None
    algorithm: str
    reason: str
    mapping: tuple[str, ...] = ()

    @property
    def scheme(self) -> QuantizationScheme:
        return QuantizationScheme(kv_cache=self.args)


@dataclass(frozen=True)
class Plan:
    """Everything that ``pipeline.run`` needs to know; nothing in it has read a weight."""

    recipe: Recipe
    model: Model
    adapter: str
    device: str
    rows: tuple[Row, ...]
    algorithms: Mapping[str, Algorithm]
    format: CheckpointFormat
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """What was found while planning."""
    versions: Mapping[str, str] = field(default_factory=dict)
    caches: tuple[CacheRow, ...] = ()
    """Empty where no scheme of the recipe quantizes a cache."""

    @property
    def needs_data(self) -> bool:
        """Whether the model has to run: an algorithm asks for data, or the scale of an activation or a cache is
        static."""
        static = any(static_inputs(row.scheme) for row in self.rows)
        return bool(self.needing_data) or static or any(row.args and not row.args.dynamic for row in self.caches)

    @property
    def needing_data(self) -> list[str]:
        """The algorithms that ask for data."""
        asking = {name for name, needs in self._needs() if needs.data}
        return [name for name in self.algorithms if name in asking]

    @property
    def needs_float_stream(self) -> bool:
        """Whether the activations of the float model are kept beside those of the quantized one."""
        return any(needs.float_stream for _, needs in self._needs())

    @property
    def float_only(self) -> bool:
        """Whether what a float block hands on is all that the next one is calibrated on. Static scales are for what
        arrives in the quantized model."""
        static = any(static_inputs(row.scheme) for row in self.rows) or bool(self.caches)
        return not static and all(needs.float_only for _, needs in self._needs() if needs.data)

    def _needs(self) -> set[tuple[str, Needs]]:
        asked = {(n, row.scheme) for row in self.rows if row.scheme for n in row.algorithms}
        asked |= {(n, row.scheme) for row in self.caches for n in row.mapping}
        return {(n, self.algorithms[n].needs(scheme)) for n, scheme in asked}

    def table(self) -> list[dict[str, Any]]:
        """The rows as plain data, in the order of execution, then kept modules, then caches."""
        rows = [
            {
                "layer": row.layer.name,
                "shape": list(row.layer.shape),
                "scheme": row.scheme.describe() if row.scheme else "float",
                "algorithms": list(row.algorithms),
                "adapter": self.adapter,
                "format": self.format.layout(row.scheme) if row.scheme else "",
                "kernel": row.kernel,
                "why": row.reason,
            }
            for row in self.rows
        ]
        kept: list[dict[str, Any]] = [
            {
                "layer": name,
                "shape": None,
                "scheme": "float",
                "algorithms": [],
                "adapter": self.adapter,
                "format": "",
                "kernel": "",
                "why": why,
            }
            for name, why in self.model.kept.items()
        ]
        return rows + kept + [self._cache(row) for row in self.caches]

    def _cache(self, row: CacheRow) -> dict[str, Any]:
        return {
            "layer": row.cache.name,
            "shape": None,
            "scheme": row.scheme.describe(),
            "algorithms": [*row.mapping, row.algorithm] if row.args else [],
            "adapter": self.adapter,
            "format": self.recipe.format if row.args else "",
            "kernel": "",
            "why": row.reason,
        }


def static_inputs(scheme: QuantizationScheme | None) -> bool:
    return bool(scheme and scheme.inputs and scheme.inputs.dynamic is False)


def make(
    recipe: Recipe,
    model: Model,
    adapter: str,
    device: str,
    reasons: Mapping[str, str] | None = None,
    notes: Sequence[str] = (),
) -> Plan:
    """Resolve a recipe against an opened model. Raises ``PlanError`` with every problem found, not the first.

    reasons: why the recipe says what it says, by layer, where something has chosen. notes: what to tell beside.
    """
    problems = _Problems()
    checkpoint_format = problems.catch(load_format, recipe.format)
    instances = recipe.instances()
    algorithms = {
        name: loaded
        for name, spec in instances.items()
        if (loaded := problems.catch(load_algorithm, spec.name, spec.options)) is not None
    }
    problems.raise_if_any()
    assert checkpoint_format is not None
    available = kernels.installed()
    rows = []
    for layer in model.layers:
        scheme, specs, reason = recipe.rule_for(layer.name)
        reason = (reasons or {}).get(layer.name, reason)
        chosen = tuple(n for spec in specs if "input" in algorithms[n := _name(instances, spec)].kinds)
        kernel = ""
        if scheme is None or scheme.weights is None:
            reason = reason if scheme is None else f"{reason}: its scheme has no weights"
            scheme, chosen = None, ()
        else:
            if scheme.kv_cache is not None:  # the attention's, not the layer's
                scheme = named(scheme.model_copy(update={"name": None, "kv_cache": None}))
            fitted = checkpoint_format.fit(layer, scheme)
            if fitted:
                scheme, reason = fitted[0], f"{reason}; {fitted[1]}"
            stages = [algorithms[n] for n in chosen]
            for why in objections(layer, scheme, stages, chosen, checkpoint_format, model.hidden):
                problems.add(why, layer.name)
            for name in chosen if not model.differentiates else ():
                if algorithms[name].needs(scheme).gradient:
                    problems.add(f"algorithm '{name}' learns, and {adapter} blocks cannot be differentiated; use gptq")
            served = problems.catch(kernels.choose, Request(scheme, layer.shape, device), available)
            kernel = served.name if served else ""
        rows.append(Row(layer, scheme, chosen, kernel, reason))
    _smooth_once(rows, instances, algorithms, problems)
    caches = _caches(recipe, model, algorithms, checkpoint_format, problems)
    for name, algorithm in algorithms.items():
        if algorithm.maps_keys and not any(name in row.mapping for row in caches):
            fixes = " or ".join(algorithm.maps_keys.values())
            problems.add(f"algorithm '{name}' finds no quantized keys to map; give scheme a kv_cache, or {fixes}")
    schemes = {row.layer.name: row.scheme for row in rows} | {row.cache.name: row.scheme for row in caches}
    for why in checkpoint_format.conflicts(schemes):
        problems.add(why)
    acting = {n for row in rows for n in row.algorithms} | {n for row in caches for n in row.mapping}
    _rotate(model, {n: a for n, a in algorithms.items() if n in acting}, problems)
    remarks = [
        f"{n}: {remark}"
        for n, algorithm in algorithms.items()
        for remark in algorithm.remarks([row.layer for row in rows if n in row.algorithms])
    ]
    kinds = {k for row in rows for n in row.algorithms for k in algorithms[n].leaves_online(row.layer, model.hidden)}
    keys = {kind for row in caches for n in row.mapping for kind in algorithms[n].maps_keys}
    remarks += checkpoint_format.remarks(kinds, keys)
    warnings = [*model.warnings, *remarks, *_unmatched(recipe, model, problems)]
    if not any(row.scheme for row in rows) and not any(row.args for row in caches):
        problems.add("no layer is left to quantize: every one is ignored or overridden to float")
    problems.raise_if_any()
    versions = {
        f"{p.kind} {p.name}": f"{p.distribution} {p.version}"
        for p in (
            *(discovery.installed("algorithm")[spec.name] for spec in instances.values()),
            discovery.installed("format")[recipe.format],
        )
    }
    return Plan(
        recipe,
        model,
        adapter,
        device,
        tuple(rows),
        algorithms,
        checkpoint_format,
        tuple(warnings),
        tuple(notes),
        versions,
        caches,
    )


def _name(instances: Mapping[str, AlgorithmSpec], spec: AlgorithmSpec) -> str:
    return next(name for name, known in instances.items() if known == spec)


def _smooth_once(
    rows: Sequence[Row],
    instances: Mapping[str, AlgorithmSpec],
    algorithms: Mapping[str, Algorithm],
    problems: "_Problems",
) -> None:
    """Layers that share an input share what is done to it."""
    first: dict[tuple[str, str], tuple[str, Row]] = {}
    for row in rows:
        for name in row.algorithms:
            if implements(algorithms[name], "smooth"):
                plugin = instances[name].name
                before, other = first.setdefault((row.layer.site, plugin), (name, row))
                if before != name:
                    why = f"shares its input with {other.layer.name}: give '{plugin}' the same options for both"
                    problems.add(why, row.layer.name)


def _caches(
    recipe: Recipe,
    model: Model,
    algorithms: Mapping[str, Algorithm],
    checkpoint_format: CheckpointFormat,
    problems: "_Problems",
) -> tuple[CacheRow, ...]:
    """A row for every attention module, where a scheme of the recipe quantizes what they cache."""
    instances = recipe.instances()
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
        asked = [_name(instances, spec) for spec in specs]
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


def load_algorithm(name: str, options: Mapping[str, Any]) -> Algorithm:
    """Load and configure one algorithm. Raises ``PluginError`` or ``PlanError``."""
    plugin = discovery.load("algorithm", name)
    found = discovery.find("algorithm", name)
    if not issubclass(plugin, Algorithm):
        raise PluginError(f"algorithm {found.origin} must derive from gs_core.Algorithm")
    try:
        validated = validate(plugin.Options, dict(options), name)
    except SchemaError as error:
        raise PlanError([f"algorithm '{name}', option {problem}" for problem in error.problems]) from None
    instance = plugin(validated)
    check_hooks(instance, found)
    return instance


def load_format(name: str) -> CheckpointFormat:
    """Load one checkpoint format. Raises ``PluginError``."""
    plugin = discovery.load("format", name)
    found = discovery.find("format", name)
    if not issubclass(plugin, CheckpointFormat):
        raise PluginError(f"format {found.origin} must derive from gs_core.CheckpointFormat")
    instance = plugin()
    check_hooks(instance, found)
    return instance


def objections(
    layer: LayerInfo,
    scheme: QuantizationScheme,
    algorithms: Sequence[Algorithm],
    names: tuple[str, ...],
    checkpoint_format: CheckpointFormat,
    hidden: int,
) -> list[str]:
    """Why this layer cannot be treated so; empty when it can."""
    assert scheme.weights is not None
    found = _order(dict(zip(names, algorithms, strict=True)))
    if scheme.weights.after is not None:
        found.append("scheme.weights.after: no installed algorithm quantizes in two stages; remove it")
    if not scheme.weights.number.is_integer:
        found.append(f"scheme.weights.format: numerics for '{scheme.weights.format}' are not installed")
    why = numerics.objection(layer.shape, scheme.weights)
    if why:
        found.append(f"{why}. Change scheme.weights, or give these layers an override")
    for name, algorithm in zip(names, algorithms, strict=True):
        why = algorithm.unsupported(layer, scheme)
        if why:
            found.append(f"algorithm '{name}': {why}")
        if algorithm.scatters(scheme) and not checkpoint_format.holds_group_index:
            found.append(
                f"algorithm '{name}' would group input features that are not neighbours, which this checkpoint "
                "format cannot hold; for gptq set static_groups: true"
            )
        for kind, fix in algorithm.leaves_online(layer, hidden).items():
            why = checkpoint_format.unsupported_online(kind, scheme)
            if why:
                found.append(f"algorithm '{name}': {why}; {fix}")
    why = checkpoint_format.unsupported(layer, scheme)
    if why:
        found.append(why)
    return found


def _rotate(model: Model, algorithms: Mapping[str, Algorithm], problems: "_Problems") -> None:
    """Give the residual stream the rotation that an algorithm wants."""
    rotating: list[str] = []
    for name, algorithm in algorithms.items():
        try:
            rotation = algorithm.residual(model.hidden)
            if rotation is not None and not rotating:
                model.rotate(rotation)
        except ValueError as error:
            problems.add(f"algorithm '{name}' rotates the residual stream: {error}. For hadamard set r1: false")
        else:
            rotating += [] if rotation is None else [name]
    if len(rotating) > 1:
        problems.add(f"{' and '.join(rotating)} both rotate the residual stream; let one of them")


def _order(algorithms: Mapping[str, Algorithm]) -> list[str]:
    """The last of a layer's algorithms quantizes it. One before it that could quantize too must have something else
    to do: then it does only that (``[awq, gptq]``: awq's scales, gptq's rounding), unless the last one refines its
    result (``[gptq, autoround]``)."""
    names = list(algorithms)
    quantizers = [n for n, a in algorithms.items() if implements(a, "quantize")]
    if not quantizers:
        return [f"algorithms {names}: none of them quantizes; name one that does last, such as rtn or gptq"]
    if names[-1] != quantizers[-1]:
        return [f"algorithms {names}: '{quantizers[-1]}' quantizes and must come last"]
    idle = [n for n in quantizers[:-1] if not implements(algorithms[n], "smooth")]
    if len(idle) > algorithms[names[-1]].refines:
        return [f"algorithms {names}: {' and '.join([*idle, names[-1]])} both quantize; keep one of them"]
    return []


def _unmatched(recipe: Recipe, model: Model, problems: "_Problems") -> list[str]:
    names = [layer.name for layer in model.layers] + [cache.name for cache in model.caches]
    for override in recipe.overrides:
        if not any(matches(override.match, name) for name in names):
            problems.add(f"override '{override.match}' matches no layer; layers look like '{names[0]}'")
    everything = [*names, *model.kept, "lm_head"]
    return [
        f"ignore '{pattern}' matches nothing in this model"
        for pattern in recipe.ignore
        if not any(matches(pattern, name) for name in everything)
    ]


class _Problems:
    """Collects problems; layers with the same one share a line."""

    def __init__(self) -> None:
        self._layers: dict[str, list[str]] = {}

    def add(self, problem: str, layer: str | None = None) -> None:
        self._layers.setdefault(problem, []).extend([layer] if layer else [])

    def catch(self, call: Any, *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except PlanError as error:
            for problem in error.problems:
                self.add(problem)
        except GoldenStickError as error:
            self.add(str(error))
        return None

    def raise_if_any(self) -> None:
        if self._layers:
            raise PlanError([_with_layers(problem, layers) for problem, layers in self._layers.items()])


def _with_layers(problem: str, layers: list[str]) -> str:
    if not layers:
        return problem
    shown = ", ".join(layers[:3]) + (f" and {len(layers) - 3} more" if len(layers) > 3 else "")
    return f"{shown}: {problem}"
