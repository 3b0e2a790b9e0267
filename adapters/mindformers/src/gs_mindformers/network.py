"""A network made ready to run on weights that are not its own parameters."""

from collections.abc import Mapping
from typing import Any

import mindspore as ms

from gs_core import CheckpointError
from gs_mindformers import caches, standins
from gs_mindformers.running import Runner
from gs_mindformers.standins import Swap
from gs_mindformers.structure import Structure
from gs_mindformers.tensors import to_parameter
from gs_mindformers.weights import Weights


class Running:
    """``outside``: what stands in for the parameters outside the blocks, in float32, and for caches."""

    def __init__(self, structure: Structure, weights: Weights):
        self.structure, self.weights = structure, weights
        self.runner = Runner(structure.network, structure.cells, caches.arguments)
        self._places = standins.places(structure.network)
        missing = [n for n in self._places if n not in structure.state and n not in weights.by_parameter]
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise CheckpointError(f"there are no weights for {', '.join(missing[:3])}{more}; it is incomplete")
        self.outside = [*caches.listening(structure), *self._standing(lambda name: structure.block_of[name] is None)]

    def light(self) -> list[Swap]:
        """What stands in for every parameter but the layers', to watch the network with."""
        return [*self.outside, *self._standing(lambda name: self.structure.block_of[name] is not None, held=False)]

    def put(self, values: Mapping[str, ms.Parameter]) -> list[Swap]:
        """Others in place of parameters, wherever those are used."""
        return [(place, key, value) for name, value in values.items() for place, key in self._places[name]]

    def _standing(self, wanted: Any, held: bool = True) -> list[Swap]:
        names = [n for n in self._places if wanted(n) and n not in self.structure.state]
        names = [n for n in names if held or n not in self.structure.held]
        return self.put({name: to_parameter(name, self.weights.read(name)) for name in names})
