"""Making a plan: a recipe resolved against an opened model, before a weight is read."""

from collections.abc import Mapping, Sequence

from gs_core import discovery, kernels
from gs_core.interfaces import Algorithm, Model, Request
from gs_core.planning.caches import cache_rows
from gs_core.planning.group_size import fit_groups, is_preset, shared_in_features
from gs_core.planning.layers import objections
from gs_core.planning.loading import load_algorithm, load_format, names_of
from gs_core.planning.plan import Plan, Row
from gs_core.planning.problems import Problems
from gs_core.stages import implements
from gs_schemas import AlgorithmSpec, Recipe, matches, named


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
    problems = Problems()
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
    in_features = shared_in_features(model.layers)
    for layer in model.layers:
        scheme, specs, reason = recipe.rule_for(layer.name)
        reason = (reasons or {}).get(layer.name, reason)
        chosen = tuple(n for n in names_of(specs, instances) if "input" in algorithms[n].kinds)
        kernel = ""
        if scheme is None or scheme.weights is None:
            reason = reason if scheme is None else f"{reason}: its scheme has no weights"
            scheme, chosen = None, ()
        else:
            preset = is_preset(scheme)
            if scheme.kv_cache is not None:  # the attention's, not the layer's
                scheme = named(scheme.model_copy(update={"name": None, "kv_cache": None}))
            grouped = fit_groups(scheme, in_features[layer.name]) if preset else None
            if grouped:
                scheme, reason = grouped[0], f"{reason}; {grouped[1]}"
            fitted = checkpoint_format.fit(layer, scheme)
            if fitted:
                scheme, reason = fitted[0], f"{reason}; {fitted[1]}"
            stages = [algorithms[n] for n in chosen]
            for why in objections(layer, scheme, stages, chosen, checkpoint_format, model.hidden):
                problems.add(why, layer.name)
            for name in chosen if not model.differentiates else ():
                if algorithms[name].needs(scheme).gradient:
                    why = f"needs gradients, and {adapter} blocks cannot be differentiated; use gptq, not guided"
                    problems.add(f"algorithm '{name}' {why}")
            served = problems.catch(kernels.choose, Request(scheme, layer.shape, device), available)
            kernel = served.name if served else ""
        rows.append(Row(layer, scheme, chosen, kernel, reason))
    _smooth_once(rows, instances, algorithms, problems)
    caches = cache_rows(recipe, model, instances, algorithms, checkpoint_format, problems)
    for name, algorithm in algorithms.items():
        if algorithm.maps_keys and not any(name in row.mapping for row in caches):
            fixes = " or ".join(algorithm.maps_keys.values())
            problems.add(f"algorithm '{name}' finds no quantized keys to map; give scheme a kv_cache, or {fixes}")
    schemes = {row.layer.name: row.scheme for row in rows} | {row.cache.name: row.scheme for row in caches}
    for why in checkpoint_format.conflicts(schemes):
        problems.add(why)
    acting = {n for row in rows for n in row.algorithms} | {n for row in caches for n in row.mapping}
    remarks = _rotate(model, {n: a for n, a in algorithms.items() if n in acting}, problems)
    remarks += [
        f"{n}: {remark}"
        for n, algorithm in algorithms.items()
        for remark in algorithm.remarks([row.layer for row in rows if n in row.algorithms])
    ]
    kinds = {k for row in rows for n in row.algorithms for k in algorithms[n].leaves_online(row.layer, model.hidden)}
    keys = {kind for row in caches for n in row.mapping for kind in algorithms[n].maps_keys}
    remarks += checkpoint_format.remarks(kinds, keys)
    quantized = {name: scheme for name, scheme in schemes.items() if scheme and (scheme.weights or scheme.kv_cache)}
    engines = tuple(checkpoint_format.engines(quantized, online=bool(kinds or keys)))
    idle = [n for n in algorithms if n not in acting and all(row.algorithm != n for row in caches)]
    remarks += [f"algorithm '{n}' has nothing to do: nothing that is quantized is given to it" for n in idle]
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
        engines,
    )


def _smooth_once(
    rows: Sequence[Row],
    instances: Mapping[str, AlgorithmSpec],
    algorithms: Mapping[str, Algorithm],
    problems: Problems,
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


def _rotate(model: Model, algorithms: Mapping[str, Algorithm], problems: Problems) -> list[str]:
    """Rotate the residual stream as an algorithm asks.

    Returns notes on rotations that are not possible in this model. A required rotation is a problem instead.
    """
    rotating: list[str] = []
    notes = []
    for name, algorithm in algorithms.items():
        try:
            rotation = algorithm.residual(model.hidden)
        except ValueError as error:
            problems.add(f"algorithm '{name}' rotates the residual stream: {error}. For hadamard set r1: false")
            continue
        if rotation is None:
            continue
        rotating.append(name)
        try:
            if len(rotating) == 1:
                model.rotate(rotation)
        except ValueError as error:
            if algorithm.residual_required:
                problems.add(f"algorithm '{name}' rotates the residual stream: {error}. For hadamard set r1: false")
            else:
                notes.append(f"{name}: the rotation of the residual stream is left out: {error}")
    if len(rotating) > 1:
        problems.add(f"{' and '.join(rotating)} both rotate the residual stream; let one of them")
    return notes


def _unmatched(recipe: Recipe, model: Model, problems: Problems) -> list[str]:
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
