"""Opening a live network."""

import json
from collections.abc import Sequence
from typing import Any

import mindspore as ms

from gs_core import PlanError
from gs_mindformers.caches import add_caches
from gs_mindformers.found import Key
from gs_mindformers.layers import find_layers
from gs_mindformers.model import Facts, MFModel
from gs_mindformers.network import Running
from gs_mindformers.structure import Structure, examine
from gs_mindformers.tensors import dtype_name, to_file
from gs_mindformers.topology import observe, why_inseparable
from gs_mindformers.weights import Entry, Weights, derived, raw_part


def open_network(network: ms.nn.Cell, block_types: Sequence[str] = ()) -> MFModel:
    """The weights stay where they are and are read when they are needed; the network is as it was after each run."""
    structure = examine(network, block_types)
    weights = Weights(entries(structure))
    facts = read_facts(network, structure)
    running = Running(structure, weights)
    seen = observe(running.runner, structure, running.light(), facts.length)
    warnings = []
    if structure.blocks != [""]:
        inseparable = why_inseparable(running.runner, structure, running.light(), seen.probe)
        if inseparable:
            structure = as_one_block(network)
            running = Running(structure, weights)
            warnings = [f"the whole network is treated as one block: {inseparable}"]

    def stored(key: Key) -> tuple[str, str]:
        entry = weights.at(*key)
        return entry.source.removesuffix(".weight"), entry.tensor.dtype

    found = find_layers(structure, seen, stored)
    if not found.places:
        raise PlanError([f"found no layer to quantize in {type(network).__name__}"])
    model = MFModel(
        type(network).__name__, facts, weights, structure.blocks, structure.block_of.get, found, lambda: running
    )
    model.warnings = warnings
    model.caches = add_caches(found, structure, seen.cached)
    return model


def as_one_block(network: ms.nn.Cell) -> Structure:
    structure = examine(network)
    structure.blocks, structure.cells = [""], []
    structure.block_of = dict.fromkeys(structure.block_of, 0)
    return structure


def entries(structure: Structure) -> list[Entry]:
    """The network's parameters as tensors of a checkpoint, the experts of one apart. Caches are no weights."""
    found: dict[str, Entry] = {}
    for parameter in structure.network.get_parameters():
        name, dtype = parameter.name, dtype_name(parameter)
        if name in structure.state:
            continue
        held = structure.held.get(name)
        if held is None or held.experts is None:
            tensor = derived(name, dtype, parameter.shape, lambda p=parameter: to_file(p))
            found[name] = Entry(name, tensor, name)
            continue
        for expert, layer in enumerate(held.names()):
            source = f"{layer}.weight"
            part = derived(
                source, dtype, parameter.shape[1:], lambda p=parameter, expert=expert: raw_part(to_file(p), expert)
            )
            found[source] = Entry(source, part, name, expert)
    return list(found.values())


def read_facts(network: ms.nn.Cell, structure: Structure) -> Facts:
    """From the network's ``config``, where it has one; else from its embedding."""
    config: Any = getattr(network, "config", None)
    content = plain(config.to_dict()) if hasattr(config, "to_dict") else {}
    vocabulary = getattr(config, "vocab_size", None) or _rows_of_embedding(structure)
    length = getattr(config, "seq_length", None)
    return Facts(content, int(vocabulary), int(length) if length else None)


def _rows_of_embedding(structure: Structure) -> int:
    for _, cell in structure.network.cells_and_names():
        if "embedding" in type(cell).__name__.lower():
            matrices = [p for p in cell._params.values() if p is not None and p.ndim == 2]
            if matrices:
                return int(matrices[0].shape[0])
    raise PlanError(["the network has neither a config with a vocab_size nor an embedding cell"])


def plain(value: Any) -> Any:
    """A configuration as JSON can say it; what it cannot is said as text."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if hasattr(value, "to_dict"):
        return plain(value.to_dict())
    try:
        json.dumps(value)
        return value
    except TypeError:
        return str(value)
