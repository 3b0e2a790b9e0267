"""From what was watched to layers and sites: which weights can be quantized, which stay, and why."""

from collections import defaultdict
from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

import torch

from gs_core import CacheInfo, LayerInfo, Site
from gs_core.storage import Checkpoint
from gs_hf.caches import Cached
from gs_hf.naming import Naming, Place, layer_name
from gs_hf.topology import Topology
from gs_hf.watch import Use

Key = tuple[str, int | None]
"""A parameter, and which expert's slice of it."""


class Input(NamedTuple):
    """One tensor and the parameters that multiply it; ``owner`` is the module of fused experts, or ``""``."""

    block: int
    owner: str
    keys: list[Key]


SMALLEST = 8
"""A matrix with fewer rows or columns than this is a gate: nothing to gain, and no kernel takes it."""


class Layers:
    """The layers of a model by block.

    infos: every layer, in the order of execution. places: layer → where its weight is. sites: block → site name →
    ``Site``. site_of: which site a product belongs to. kept: name → reason.
    """

    def __init__(
        self, module: torch.nn.Module, naming: Naming, checkpoint: Checkpoint, blocks: list[str], seen: Topology
    ):
        self.naming, self.checkpoint, self.blocks = naming, checkpoint, blocks
        self.infos: list[LayerInfo] = []
        self.places: dict[str, list[Place]] = {}
        self.transposed = {name for name, use in seen.uses.items() if use.transposed}
        self.kept: dict[str, str] = {}
        self.site_of: dict[Key, str] = {}
        self.keys_at: dict[str, list[Key]] = defaultdict(list)
        self.sites: list[dict[str, Site]] = [{} for _ in blocks]
        self._module = module
        self._experts = self._expert_counts()
        inputs = [each for group in seen.together for each in self._inputs(group, seen)]
        for (block, owner), some in groupby(inputs, key=lambda each: (each.block, each.owner)):
            # Fused experts compute one after another, each from its first product to its last.
            for each in sorted(some, key=lambda each: each.keys[0][1] or 0) if owner else some:
                self._add_site(each.keys, block, seen)
        self._report_unused(seen)
        inside = [n for n, _ in module.named_parameters(remove_duplicate=False) if self._block_of(n) is not None]
        inside += [n for n, _ in module.named_buffers() if self._block_of(n) is not None]
        sources = {place.source for name in inside for place in naming.by_parameter.get(name, [])}
        for target, opaque in naming.opaque.items():
            if self._block_of(target) is not None:
                sources |= {s for names in opaque.sources.values() for s in names}
        self.sources_in_blocks = sources

    def _block_of(self, parameter: str) -> int | None:
        if self.blocks == [""]:
            return 0
        for index, block in enumerate(self.blocks):
            if parameter.startswith(block + "."):
                return index
        return None

    def _expert_counts(self) -> dict[str, int]:
        """Modules that hold fused experts, and how many: what routes to them has as many outputs."""
        found = {}
        for name, child in self._module.named_modules():
            three = [p for p in child._parameters.values() if p is not None and p.ndim == 3]
            if three:
                found[name] = int(three[0].shape[0])
            elif isinstance(child, torch.nn.ModuleList) and len(child) > 1 and name not in self.blocks:
                found[name] = len(child)
        return found

    def _inputs(self, group: list[str], seen: Topology) -> Iterator[Input]:
        """Parameters that were given one tensor, by blocks and by experts; what lies in no block is kept."""
        for block in dict.fromkeys(self._block_of(p) for p in group):
            here = [p for p in group if self._block_of(p) == block]
            if block is None:
                self.kept |= dict.fromkeys(map(_module_of, here), "outside the decoder blocks")
            elif all(seen.uses[p].expert is None for p in here):
                yield Input(block, "", [(p, None) for p in here])
            else:
                for expert in range(self._module.get_parameter(here[0]).shape[0]):
                    keys = [(p, expert if seen.uses[p].expert is not None else None) for p in here]
                    yield Input(block, here[0].rpartition(".")[0], keys)

    def _add_site(self, keys: list[Key], block: int, seen: Topology) -> None:
        layers: list[tuple[str, list[Place], Use]] = []
        for parameter, expert in keys:
            layers += [
                (n, p, seen.uses[parameter]) for n, p in self._layers_in(parameter, expert, seen.uses[parameter])
            ]
        name = f"{layers[0][0] if layers else keys[0][0]}.input"
        for key in keys:
            self.site_of[key] = name
            self.keys_at[name].append(key)
        if not layers:
            return
        infos = []
        for layer, places, use in layers:
            info = self._info(layer, places, use, block, name)
            infos.append(info)
            self.places[layer] = places
        self.infos += infos
        self.sites[block][name] = Site(name, infos[0].shape[1], tuple(i.name for i in infos))

    def _layers_in(self, parameter: str, expert: int | None, use: Use) -> list[tuple[str, list[Place]]]:
        """The checkpoint's layers that lie in one slice of a parameter; empty, with a note, when it is none."""
        reason = self._reason_to_keep(parameter, expert, use)
        if reason:
            self.kept[_module_of(parameter)] = reason
            return []
        found: dict[str, list[Place]] = {}
        for place in self.naming.by_parameter[parameter]:
            if place.expert == expert:
                found[layer_name(place)] = self.naming.by_source[place.source]
        return list(found.items())

    def _reason_to_keep(self, parameter: str, expert: int | None, use: Use) -> str | None:
        value = self._module.get_parameter(parameter)
        owner = self._module.get_submodule(parameter.rpartition(".")[0])
        if parameter in self.naming.opaque or parameter not in self.naming.by_parameter:
            return "stored through a conversion that mixes its elements, or tied to another weight"
        if use.transposed:
            return "its weight is stored as (in, out), as Conv1D of GPT-2 does, and engines load (out, in)"
        places = [p for p in self.naming.by_parameter[parameter] if p.expert == expert]
        if not places:
            return "experts stored as one tensor, which the checkpoint format's engines do not load"
        if any(p.parameter != parameter for place in places for p in self.naming.by_source[place.source]):
            return "stored as part of one tensor with other parameters"
        if not all(place.source.endswith(".weight") for place in places):
            return "not stored as a layer's weight"
        if expert is None and not isinstance(owner, torch.nn.Linear):
            return f"a bare matrix of {type(owner).__name__}, not a linear layer"
        rows = int(value.shape[-2])
        if expert is None and rows in self._neighbouring_experts(parameter):
            return "routes tokens to experts"
        if min(value.shape[-2:]) < SMALLEST:
            return f"only {rows} by {value.shape[-1]}"
        return None

    def _neighbouring_experts(self, parameter: str) -> set[int]:
        """Expert counts in the modules around a parameter."""
        parent = parameter.rsplit(".", 2)[0] + "."
        return {count for name, count in self._experts.items() if name.startswith(parent) and count > 1}

    def _info(self, layer: str, places: list[Place], use: Use, block: int, site: str) -> LayerInfo:
        stored = self.checkpoint[places[0].source]
        rows, columns = stored.shape[-2:]
        module = _module_of(places[0].parameter) if places[0].expert is None else layer
        alias = module if module != layer else ""
        return LayerInfo(layer, block, (int(rows), int(columns)), site, stored.dtype, alias)

    def add_cache(self, cached: Cached) -> CacheInfo:
        """The sites of a cache, among those of its block in the order of execution."""
        block = self._block_of(f"{cached.module}.")
        assert block is not None, f"{cached.module} lies outside the blocks"
        inside = next(p for p in self.naming.by_parameter if p.startswith(f"{cached.module}."))
        source = self.naming.by_parameter[inside][0].source
        name = source.removesuffix(inside.removeprefix(cached.module))
        name = name if name != source else cached.module
        dtype = self.checkpoint[source].dtype
        (heads, size), (value_heads, value_size) = cached.key, cached.value
        key = Site(f"{name}.key", heads * size, (), "key", heads, dtype)
        unrotated = Site(f"{name}.unrotated_key", heads * size, (), "unrotated_key", heads, dtype)
        value = Site(f"{name}.value", value_heads * value_size, (), "value", value_heads, dtype)
        if cached.maker:
            self._insert(block, cached.used[: cached.made], unrotated)
        self._insert(block, cached.used, key, value)
        sites = ((unrotated,) if cached.maker else ()) + (key, value)
        return CacheInfo(name, block, sites, cached.rotated_only, cached.module if cached.module != name else "")

    def _insert(self, block: int, used: list[str], *new: Site) -> None:
        """Put sites behind the last one that any of the parameters ``used`` before belongs to."""
        sites = list(self.sites[block].values())
        before = {self.site_of.get((parameter, None)) for parameter in used}
        at = max((i + 1 for i, site in enumerate(sites) if site.name in before or site.kind != "input"), default=0)
        self.sites[block] = {site.name: site for site in [*sites[:at], *new, *sites[at:]]}

    def _report_unused(self, seen: Topology) -> None:
        """Linear layers that the watched run never reached stay in floating point, and are said to."""
        for name, child in self._module.named_modules():
            if not isinstance(child, torch.nn.Linear):
                continue
            parameter = f"{name}.weight"
            if parameter not in seen.uses and name not in self.kept and self._tied_use(child, seen) is None:
                self.kept[name] = (
                    "never used on plain text"
                    if self._block_of(parameter) is not None
                    else "outside the decoder blocks"
                )

    def _tied_use(self, child: torch.nn.Linear, seen: Topology) -> str | None:
        owners = [n for n, p in self._module.named_parameters(remove_duplicate=False) if p is child.weight]
        return next((n for n in owners if n in seen.uses), None)


def _module_of(parameter: str) -> str:
    return parameter.removesuffix(".weight")
