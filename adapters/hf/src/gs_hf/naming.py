"""Which tensor of the checkpoint is which part of which parameter of the module.

transformers 5 stores some weights otherwise than it computes with them: a mixture's experts lie on disk one by
one and in the module as one 3-D parameter. What it declares about that is read here as *places*: a piece of a
checkpoint tensor, and where in a parameter it goes. Everything else of the adapter speaks of places.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class Place:
    """Rows ``[source_start, source_start + rows)`` of a checkpoint tensor are
    ``parameter[expert][start : start + rows]`` (``expert`` is None where there is no such axis)."""

    source: str
    parameter: str
    expert: int | None = None
    start: int = 0
    source_start: int = 0
    rows: int | None = None

    def of(self, parameter: torch.Tensor) -> torch.Tensor:
        """The view of the parameter."""
        part = parameter if self.expert is None else parameter[self.expert]
        return part if self.rows is None else part[self.start : self.start + self.rows]

    def of_source(self, source: Any) -> Any:
        """The rows of the checkpoint tensor (or of one like it)."""
        return source if self.rows is None else source[self.source_start : self.source_start + self.rows]


@dataclass
class Naming:
    """Places by parameter and by checkpoint tensor; ``opaque`` parameters are stored through a conversion that
    places cannot say, and keep the converter that makes them."""

    by_parameter: dict[str, list[Place]] = field(default_factory=lambda: defaultdict(list))
    by_source: dict[str, list[Place]] = field(default_factory=lambda: defaultdict(list))
    opaque: dict[str, "Opaque"] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)

    def add(self, place: Place) -> None:
        self.by_parameter[place.parameter].append(place)
        self.by_source[place.source].append(place)


@dataclass(frozen=True)
class Opaque:
    """Parameters computed by transformers' own converter from these checkpoint tensors, by pattern."""

    converter: Any
    target: str
    sources: dict[str, list[str]]


Shapes = Mapping[str, tuple[int, ...]]


def name_places(module: torch.nn.Module, sources: Shapes) -> Naming:
    """Match the checkpoint's tensors (names and shapes) with the module's parameters and persistent buffers."""
    state = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    naming = Naming()
    renamings, converters = _conversions(module)
    prefix = getattr(module, "base_model_prefix", None)
    groups: dict[str, tuple[Any, dict[str, list[str]]]] = {}
    for source in _natural(sources):
        target, pattern = _rename(source, renamings, converters, prefix, module)
        if target not in state and source in state:
            target, pattern = source, None
        if target not in state:
            naming.unused.append(source)
        elif pattern is None:
            if state[target] != tuple(sources[source]):
                raise ValueError(
                    f"'{source}' is {tuple(sources[source])} in the checkpoint, the model has {state[target]}"
                )
            naming.add(Place(source, target))
        else:
            converter = next(c for c in converters if pattern in c.source_patterns)
            groups.setdefault(target, (converter, {}))[1].setdefault(pattern, []).append(source)
    for target, (converter, collected) in groups.items():
        _place_group(naming, converter, target, collected, sources, state)
    _check_covered(naming, sources, state)
    return naming


def _conversions(module: torch.nn.Module) -> tuple[list, list]:
    from transformers import PreTrainedModel
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter

    if not isinstance(module, PreTrainedModel):
        return [], []
    transforms = get_model_conversion_mapping(module)
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    return [t for t in transforms if not isinstance(t, WeightConverter)], converters


def _natural(names: Shapes) -> list[str]:
    from transformers.core_model_loading import dot_natural_key

    return sorted(names, key=dot_natural_key)


def _rename(
    source: str, renamings: list, converters: list, prefix: str | None, module: torch.nn.Module
) -> tuple[str, str | None]:
    from transformers.core_model_loading import rename_source_key

    if not prefix:
        return rename_source_key(source, renamings, converters)
    return rename_source_key(source, renamings, converters, prefix, _state_cache(module))


def _state_cache(module: torch.nn.Module) -> dict:
    cached = module.__dict__.get("_gs_state")
    if cached is None:
        cached = module.__dict__["_gs_state"] = module.state_dict()
    return cached


def _place_group(naming: Naming, converter: Any, target: str, collected: dict, sources: Shapes, state: Shapes) -> None:
    """Say a conversion in places where it only stacks, concatenates or cuts rows; keep it opaque otherwise."""
    steps = [(type(op).__name__, getattr(op, "dim", None)) for op in converter.operations]
    ordered = [collected[p] for p in converter.source_patterns if p in collected]
    rows = {name: int(sources[name][0]) for names in ordered for name in names if sources[name]}
    if steps in ([("MergeModulelist", 0)], [("MergeModulelist", 0), ("Concatenate", 1)]):
        start = 0
        for names in ordered:
            _check_experts(names, target, state[target][0])
            for expert, name in enumerate(names):
                naming.add(Place(name, target, expert, start, 0, rows[name]))
            start += rows[names[0]]
    elif steps == [("Concatenate", 0)]:
        start = 0
        for name in (name for names in ordered for name in names):
            naming.add(Place(name, target, None, start, 0, rows[name]))
            start += rows[name]
    elif steps == [("Chunk", 0)] and len(ordered) == 1 and len(ordered[0]) == 1:
        (name,), parts = ordered[0], converter.target_patterns
        each = rows[name] // len(parts)
        for number, part in enumerate(parts):
            naming.add(Place(name, target.replace(parts[0], part), None, 0, number * each, each))
    else:
        naming.opaque[target] = Opaque(converter, target, collected)


def _check_experts(names: list[str], target: str, count: int) -> None:
    """Raise ``ValueError`` unless these are the names of all experts: each is told by its place in their order."""
    if len(names) == count:
        return
    parts = [name.split(".") for name in names]
    numbered = next((i for i, column in enumerate(zip(*parts, strict=False)) if len({*column}) > 1), None)
    example = ""
    if numbered is not None and len(names) < count:
        lost = min({*map(str, range(count))} - {part[numbered] for part in parts}, key=int)
        example = f"; there is no '{'.'.join([*parts[0][:numbered], lost, *parts[0][numbered + 1 :]])}'"
    raise ValueError(f"the checkpoint has {len(names)} of the {count} experts in '{target}'{example}")


def _check_covered(naming: Naming, sources: Shapes, state: Shapes) -> None:
    """Raise ``ValueError`` where pieces do not make a whole parameter."""
    for parameter, places in naming.by_parameter.items():
        if places[0].rows is None:
            continue
        whole = state[parameter] if places[0].expert is None else state[parameter][1:]
        rows = dict.fromkeys((place.expert for place in places), 0)
        for place in places:
            if tuple(sources[place.source][1:]) != tuple(whole[1:]):
                shape = tuple(sources[place.source])
                raise ValueError(f"'{place.source}' is {shape} in the checkpoint, a part of {whole} in the model")
            rows[place.expert] += place.rows or 0
        if any(count != whole[0] for count in rows.values()):
            there = ", ".join(dict.fromkeys(place.source for place in places[:3]))
            raise ValueError(f"'{parameter}' is {whole} in the model, the checkpoint has only a part of it: {there} …")


def layer_name(place: Place) -> str:
    """The checkpoint's name of the layer whose weight this is."""
    return place.source.removesuffix(".weight") if place.source.endswith(".weight") else place.source
