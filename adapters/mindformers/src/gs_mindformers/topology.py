"""Sites without a table of networks: run once on nothing, and watch which layers receive one tensor.

The products are answered with constants, so a network of any size is watched in seconds.
"""

from dataclasses import dataclass, field
from typing import Any

import mindspore as ms
import numpy as np

from gs_core import CalibrationError, PlanError
from gs_mindformers import caches
from gs_mindformers.found import Key
from gs_mindformers.linear import Held
from gs_mindformers.running import Runner, flatten, put_down, take_up
from gs_mindformers.standins import Swap
from gs_mindformers.structure import Structure
from gs_mindformers.tensors import to_numpy, to_tensor
from gs_mindformers.watch import Use, listening

PROBE = np.arange(16, dtype=np.int64).reshape(2, 8) % 7 + 2
"""Plain token ids: small, so that every vocabulary has them; two rows, because some networks pair rows."""
CHECKED_BLOCKS = 6


@dataclass
class Topology:
    """together: weights that were given one tensor, in the order of execution. cached: every cache by path, and the
    products that came before. probe: tokens the network takes."""

    together: list[list[Key]] = field(default_factory=list)
    cached: list[tuple[str, list[Key]]] = field(default_factory=list)
    probe: np.ndarray = field(default_factory=lambda: PROBE)


def observe(runner: Runner, structure: Structure, standins: list[Swap], length: int | None) -> Topology:
    """Watch a network run. ``length``: the only one it takes, should a short one fail. Raises ``PlanError``."""
    try:
        return _observe(runner, structure, standins, PROBE)
    except CalibrationError as error:
        if length is None or length <= PROBE.shape[1]:
            raise PlanError([f"its layers cannot be found: {error}"]) from error
    try:
        return _observe(runner, structure, standins, np.resize(PROBE, (2, length)))
    except CalibrationError as error:
        raise PlanError([f"its layers cannot be found: {error}"]) from error


def _observe(runner: Runner, structure: Structure, standins: list[Swap], probe: np.ndarray) -> Topology:
    found = Topology(probe=probe)
    seen: dict[Key, None] = {}
    # Twice, with outputs rising and falling: what routes by its largest output then takes both ends.
    for sign in (1.0, -1.0):
        groups: dict[tuple, list[Key]] = {}
        alive: list[ms.Tensor] = []

        def on_use(use: Use, sign: float = sign, groups: dict = groups, alive: list = alive) -> ms.Tensor:
            if use.key not in seen:
                seen[use.key] = None
                alive.append(use.given)  # a freed tensor's memory could come back as another one's
                groups.setdefault(use.arrived(), []).append(use.key)
            rows = structure.held[use.key[0]].shape[0]
            # Not a constant along the features: a norm of constants would be zero, and zero can be divided by.
            rising = np.linspace(-sign, sign, rows, dtype=np.float32)
            return to_tensor(np.broadcast_to(rising, (*use.x.shape[:-1], rows)).copy())

        def on_cache(path: str, key: ms.Tensor, value: ms.Tensor) -> tuple[ms.Tensor, ms.Tensor]:
            if path not in dict(found.cached):
                found.cached.append((path, list(seen)))
            return key, value

        listeners = [*listening(structure.held.values(), on_use), *caches.listening(structure, on_cache)]
        runner.whole(probe, [*standins, *listeners])
        found.together += groups.values()
    return found


def why_inseparable(runner: Runner, structure: Structure, standins: list[Swap], probe: np.ndarray) -> str | None:
    """Why the blocks cannot be run one at a time, or None when they can.

    They can when a block is called with, and returns, the same tensors whatever the blocks before its predecessor
    returned.
    """
    swaps = [*standins, *listening(structure.held.values(), lambda use: _mix(structure.held[use.key[0]], use.x))]
    blocks = len(structure.blocks)
    try:
        returned = runner.returns(probe, swaps)
        for index in sorted({round(i * (blocks - 1) / CHECKED_BLOCKS) for i in range(1, CHECKED_BLOCKS + 1)} - {0}):
            answers = _only_last(returned[:index])
            whole = [*runner.arrives(index, probe, returned, swaps), *flatten(returned[index]).values()]
            again = flatten(runner.returns_at(index, probe, answers, swaps))
            if not _same(whole, [*runner.arrives(index, probe, answers, swaps), *again.values()]):
                return f"block {index} takes more from the blocks before it than the last one returns"
        ends = [runner.end(probe, answers, swaps) for answers in (returned, _only_last(returned))]
        if not _same(ends[:1], ends[1:]):
            return "what follows the blocks takes more than the last one returns"
    except CalibrationError as error:
        return str(error)
    return None


def _mix(held: Held, x: ms.Tensor) -> ms.Tensor:
    """An output that follows the input, so that a difference between two runs would show."""
    values = to_numpy(x).astype(np.float32)
    mixed = (values * np.cos(np.arange(values.shape[-1], dtype=np.float32))).mean(-1, keepdims=True)
    return to_tensor(mixed + np.linspace(-1, 1, held.shape[0], dtype=np.float32))


def _only_last(returned: list[Any]) -> list[Any]:
    """The last answer, and something else in place of those before it."""
    last = flatten(returned[-1])
    other = {n: v * np.float32(1.5) + np.float32(0.25) if v.dtype.kind == "f" else v for n, v in last.items()}
    return [take_up(put_down(other))] * (len(returned) - 1) + [take_up(put_down(last))]


def _same(left: list[np.ndarray], right: list[np.ndarray]) -> bool:
    return len(left) == len(right) and all(
        a.shape == b.shape and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
        for a, b in zip(left, right, strict=True)
    )
