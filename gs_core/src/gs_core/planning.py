"""The plan: every layer's adapter, algorithms, scheme, format and kernel, with the reason, before a weight is read."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gs_core import discovery, kernels, numerics
from gs_core.errors import GoldenStickError, PlanError, PluginError
from gs_core.interfaces import Algorithm, CheckpointFormat, LayerInfo, Model, Request
from gs_core.stages import check_hooks, implements
from gs_schemas import QuantizationScheme, Recipe, SchemaError, matches, validate


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
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def needs_data(self) -> bool:
        """Whether the model has to run: an algorithm observes or transforms, or an activation scale is static."""
        named = {name for row in self.rows for name in row.algorithms}
        running = any(implements(self.algorithms[name], hook) for name in named for hook in ("observe", "smooth"))
        return running or any(static_inputs(row.scheme) for row in self.rows)

    def table(self) -> list[dict[str, Any]]:
        """The rows as plain data, in the order of execution, kept modules last."""
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
        return rows + kept


def static_inputs(scheme: QuantizationScheme | None) -> bool:
    return bool(scheme and scheme.inputs and scheme.inputs.dynamic is False)


def make(recipe: Recipe, model: Model, adapter: str, device: str) -> Plan:
    """Resolve a recipe against an opened model. Raises ``PlanError`` with every problem found, not the first."""
    problems = _Problems()
    checkpoint_format = problems.catch(load_format, recipe.format)
    names = [a.name for a in recipe.algorithms] + [a.name for o in recipe.overrides for a in o.algorithms or []]
    options = {a.name: a.options for a in recipe.algorithms}
    options |= {a.name: a.options for o in recipe.overrides for a in o.algorithms or []}
    algorithms = {
        name: loaded
        for name in dict.fromkeys(names)
        if (loaded := problems.catch(load_algorithm, name, options[name])) is not None
    }
    problems.raise_if_any()
    assert checkpoint_format is not None
    available = kernels.installed()
    rows = []
    for layer in model.layers:
        scheme, specs, reason = recipe.rule_for(layer.name)
        chosen = tuple(spec.name for spec in specs)
        kernel = ""
        if scheme is None or scheme.weights is None:
            scheme, chosen = None, ()
        else:
            fitted = checkpoint_format.fit(layer, scheme)
            if fitted:
                scheme, reason = fitted[0], f"{reason}; {fitted[1]}"
            for why in _objections(
                layer, scheme, [algorithms[n] for n in chosen], chosen, checkpoint_format, model.hidden
            ):
                problems.add(why, layer.name)
            served = problems.catch(kernels.choose, Request(scheme, layer.shape, device), available)
            kernel = served.name if served else ""
        rows.append(Row(layer, scheme, chosen, kernel, reason))
    for why in checkpoint_format.conflicts({row.layer.name: row.scheme for row in rows}):
        problems.add(why)
    _rotate(model, {n: a for n, a in algorithms.items() if any(n in row.algorithms for row in rows)}, problems)
    remarks = [
        f"{n}: {remark}"
        for n, algorithm in algorithms.items()
        for remark in algorithm.remarks([row.layer for row in rows if n in row.algorithms])
    ]
    kinds = {k for row in rows for n in row.algorithms for k in algorithms[n].leaves_online(row.layer, model.hidden)}
    remarks += checkpoint_format.remarks(kinds)
    warnings = [*model.warnings, *remarks, *_unmatched(recipe, model, problems)]
    if not any(row.scheme for row in rows):
        problems.add("no layer is left to quantize: every one is ignored or overridden to float")
    problems.raise_if_any()
    versions = {
        f"{p.kind} {p.name}": f"{p.distribution} {p.version}"
        for p in (
            *(discovery.installed("algorithm")[n] for n in algorithms),
            discovery.installed("format")[recipe.format],
        )
    }
    return Plan(recipe, model, adapter, device, tuple(rows), algorithms, checkpoint_format, tuple(warnings), versions)


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


def _objections(
    layer: LayerInfo,
    scheme: QuantizationScheme,
    algorithms: list[Algorithm],
    names: tuple[str, ...],
    checkpoint_format: CheckpointFormat,
    hidden: int,
) -> list[str]:
    """Why this layer cannot be treated so; empty when it can."""
    assert scheme.weights is not None
    found = _order(dict(zip(names, algorithms, strict=True)))
    if scheme.kv_cache is not None:
        found.append("scheme.kv_cache: no installed algorithm quantizes the KV cache; remove it")
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
            if kind not in checkpoint_format.holds_online:
                found.append(
                    f"algorithm '{name}' would leave a {kind} map of its input to be computed at run time, which "
                    f"this checkpoint format cannot hold; {fix}"
                )
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
    to do: then it does only that (``[awq, gptq]``: awq's scales, gptq's rounding)."""
    names = list(algorithms)
    quantizers = [n for n, a in algorithms.items() if implements(a, "quantize")]
    if not quantizers:
        return [f"algorithms {names}: none of them quantizes; name one that does last, such as rtn or gptq"]
    if names[-1] != quantizers[-1]:
        return [f"algorithms {names}: '{quantizers[-1]}' quantizes and must come last"]
    idle = [n for n in quantizers[:-1] if not implements(algorithms[n], "smooth")]
    if idle:
        return [f"algorithms {names}: {' and '.join([*idle, names[-1]])} both quantize; keep one of them"]
    return []


def _unmatched(recipe: Recipe, model: Model, problems: "_Problems") -> list[str]:
    names = [layer.name for layer in model.layers]
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
