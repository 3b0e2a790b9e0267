"""Other things in the place of a network's own, for the time of a run and not a moment longer.

A run needs float32 parameters, layers that are listened to, blocks that stand still. All of them are entries of the
dictionaries that cells keep their attributes and parameters in. What was there comes back when the run ends, however
it ends: the user's network is never changed.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import mindspore as ms
import numpy as np

from gs_mindformers.tensors import NARROW, to_numpy, to_tensor

Swap = tuple[dict, str, Any]
"""A dictionary, a key, and what is to stand there."""
_ABSENT = object()
_FLOATS = (type(ms.float32), type(ms.bfloat16))


@contextmanager
def swapped(swaps: Iterable[Swap]) -> Iterator[None]:
    """Put things in place, and back afterwards."""
    before: list[Swap] = []
    try:
        for place, key, value in swaps:
            before.append((place, key, place.get(key, _ABSENT)))
            place[key] = value
        yield
    finally:
        for place, key, value in reversed(before):
            if value is _ABSENT:
                place.pop(key, None)
            else:
                place[key] = value


@contextmanager
def eager() -> Iterator[None]:
    """Compute at once, and say so at once when something fails: by default MindSpore's errors surface later, in
    whatever asks for a value next."""
    wanted = {"mode": ms.PYNATIVE_MODE, "pynative_synchronize": True}
    before = {name: ms.get_context(name) for name in wanted}
    changed = {name: value for name, value in wanted.items() if before[name] != value}
    if changed:
        ms.set_context(**changed)
    try:
        yield
    finally:
        if changed:
            ms.set_context(**{name: before[name] for name in changed})


def inference(network: ms.nn.Cell) -> list[Swap]:
    """What makes a network compute in float32, eagerly, and not for training."""
    swaps: list[Swap] = []
    for _, cell in network.cells_and_names():
        attributes = cell.__dict__
        for name, value in attributes.items():
            if isinstance(value, _FLOATS) and value in NARROW:
                swaps.append((attributes, name, ms.float32))
            elif isinstance(value, ms.Tensor) and value.dtype in NARROW:
                swaps.append((attributes, name, widened(value)))
        for name, value in {"training": False, "requires_grad": False, "is_pynative": True}.items():
            if name in attributes:
                swaps.append((attributes, name, value))
    return swaps


def widened(x: ms.Tensor) -> ms.Tensor:
    return to_tensor(to_numpy(x).astype(np.float32))


def places(network: ms.nn.Cell) -> dict[str, list[tuple[dict, str]]]:
    """Every place where a parameter stands, by the parameter's name: more than one where it is tied."""
    found: dict[str, list[tuple[dict, str]]] = {}
    for _, cell in network.cells_and_names():
        for name, parameter in cell._params.items():
            if parameter is not None:
                found.setdefault(parameter.name, []).append((cell._params, name))
    return found
