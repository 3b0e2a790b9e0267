"""From what was watched to layers and sites: which weights can be quantized, which stay, and why."""

from collections.abc import Callable

from gs_core import LayerInfo, Site
from gs_mindformers.found import Key, Layers, Place
from gs_mindformers.linear import Held
from gs_mindformers.structure import Structure
from gs_mindformers.topology import Topology

SMALLEST = 8
"""A matrix with fewer rows or columns than this is a gate: nothing to gain, and no kernel takes it."""


def find_layers(structure: Structure, seen: Topology, stored: Callable[[Key], tuple[str, str]]) -> Layers:
    """``stored``: name (without ``.weight``) and dtype of a weight as the checkpoint has it."""
    found = Layers(sites=[{} for _ in structure.blocks], kept=dict(structure.kept))
    used: set[str] = set()
    for group in seen.together:
        used |= {parameter for parameter, _ in group}
        for block in dict.fromkeys(structure.block_of[parameter] for parameter, _ in group):
            here = [key for key in group if structure.block_of[key[0]] == block]
            if block is None:
                found.kept |= {structure.held[p].path: "outside the decoder blocks" for p, _ in here}
            else:
                _add_site(found, structure, block, here, stored)
    for held in structure.held.values():
        if held.parameter not in used:
            inside = structure.block_of[held.parameter] is not None
            found.kept[held.path] = "never used on plain text" if inside else "outside the decoder blocks"
    return found


def _add_site(
    found: Layers, structure: Structure, block: int, keys: list[Key], stored: Callable[[Key], tuple[str, str]]
) -> None:
    infos: list[LayerInfo] = []
    site = ""
    places = [Place(*key, structure.held[key[0]].transposed) for key in keys]
    for key, place in zip(keys, places, strict=True):
        held, (layer, dtype) = structure.held[key[0]], stored(key)
        reason = _reason_to_keep(structure, held)
        if reason:
            found.kept[held.path] = reason
            continue
        site = site or f"{layer}.input"
        alias = held.path if held.path != layer else ""
        infos.append(LayerInfo(layer, block, held.shape, site, dtype, alias, held.transposed))
        found.places[layer] = place
    site = site or f"{stored(keys[0])[0]}.input"
    found.site_of |= dict.fromkeys(keys, site)
    found.fed[site] = places
    if infos:
        found.infos += infos
        found.sites[block][site] = Site(site, infos[0].shape[1], tuple(info.name for info in infos))


def _reason_to_keep(structure: Structure, held: Held) -> str | None:
    if held.experts is None and held.shape[0] in _neighbouring_experts(structure, held.path):
        return "routes tokens to experts"
    if min(held.shape) < SMALLEST:
        return f"only {held.shape[0]} by {held.shape[1]}"
    return None


def _neighbouring_experts(structure: Structure, path: str) -> set[int]:
    """Expert counts in the modules around a cell."""
    parent = path.rsplit(".", 2)[0] + "."
    return {h.experts for h in structure.held.values() if h.experts is not None and h.path.startswith(parent)}
