"""What a network is made of: its linear cells, its decoder blocks, and which parameter lies where."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import mindspore as ms

from gs_core import PlanError
from gs_mindformers.linear import CACHE, FLOATS, Held, held_by, is_a


@dataclass
class Structure:
    """held: every linear cell's weight by parameter. blocks: paths of the decoder blocks, ``[""]`` for a network that
    is one. block_of: parameter → the block it lies in, None for outside. kept: module → why it stays in floating
    point. caches: the cells that cache keys and values, by path. state: their parameters, which are no weights."""

    network: ms.nn.Cell
    held: dict[str, Held] = field(default_factory=dict)
    blocks: list[str] = field(default_factory=list)
    cells: list[ms.nn.Cell] = field(default_factory=list)
    block_of: dict[str, int | None] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    caches: dict[str, ms.nn.Cell] = field(default_factory=dict)
    state: set[str] = field(default_factory=set)

    def index(self, path: str) -> int | None:
        """The block that a cell lies in."""
        if self.blocks == [""]:
            return 0
        inside = [n for n, block in enumerate(self.blocks) if path == block or path.startswith(f"{block}.")]
        return inside[0] if inside else None


def examine(network: ms.nn.Cell, block_types: Sequence[str] = ()) -> Structure:
    """Read a network's cells; nothing runs. Raises ``PlanError`` when ``block_types`` name none of them."""
    found = Structure(network)
    by_path = dict(network.cells_and_names())
    for path, cell in by_path.items():
        held = held_by(path, cell)
        if isinstance(held, str):
            found.kept[path] = held
        elif held is not None:
            found.held.setdefault(held.parameter, held)
        if is_a(cell, CACHE):
            found.caches[path] = cell
    found.blocks = _named_blocks(by_path, block_types) if block_types else _largest_list(by_path, found)
    found.cells = [] if found.blocks == [""] else [by_path[path] for path in found.blocks]
    for path, cell in by_path.items():
        for name, parameter in cell._params.items():
            if parameter is None:
                continue
            if path in found.caches:
                found.state.add(parameter.name)
            found.block_of.setdefault(parameter.name, found.index(path))
            matrix = parameter.ndim > 1 and str(parameter.dtype).lower() in FLOATS
            if matrix and parameter.name not in {*found.held, *found.state} and path not in found.kept:
                where = path if name == "weight" else f"{path}.{name}".lstrip(".")
                found.kept[where] = f"a bare matrix of {type(cell).__name__}, not a linear layer"
    return found


def _named_blocks(by_path: dict[str, ms.nn.Cell], block_types: Sequence[str]) -> list[str]:
    paths = [path for path, cell in by_path.items() if is_a(cell, *block_types)]
    outermost = [path for path in paths if not any(path.startswith(f"{other}.") for other in paths)]
    if not outermost:
        raise PlanError([f"no cell of the network is of type {' or '.join(block_types)}"])
    return outermost


def _largest_list(by_path: dict[str, ms.nn.Cell], found: Structure) -> list[str]:
    """The outermost ``CellList`` whose linear cells hold the most; a network without one is a single block."""
    lists: dict[str, int] = {}
    for path, cell in by_path.items():
        if isinstance(cell, ms.nn.CellList) and len(cell) and not any(path.startswith(f"{other}.") for other in lists):
            inside = [held for held in found.held.values() if held.path.startswith(f"{path}.")]
            lists[path] = sum(held.shape[0] * held.shape[1] * (held.experts or 1) for held in inside)
    if not lists or not max(lists.values()):
        return [""]
    chosen = max(lists, key=lambda path: lists[path])
    return [f"{chosen}.{number}" for number in range(len(by_path[chosen]))]
