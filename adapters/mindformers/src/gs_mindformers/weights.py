"""The weights of a network by the names a checkpoint gives them, wherever they come from."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from gs_core import CheckpointError
from gs_core.arrays import RawTensor, astype, from_raw
from gs_core.storage import DerivedTensor, StoredTensor

Stored = StoredTensor | DerivedTensor


@dataclass(frozen=True)
class Entry:
    """A tensor of the checkpoint, and what it is in the network: a parameter, or one expert's part of one."""

    source: str
    tensor: Stored
    parameter: str
    expert: int | None = None


class Weights:
    """Entries by parameter and by source, in the order given."""

    def __init__(self, entries: list[Entry]):
        self.entries = entries
        self.by_parameter: dict[str, list[Entry]] = {}
        for entry in entries:
            self.by_parameter.setdefault(entry.parameter, []).append(entry)
        self.by_source = {entry.source: entry for entry in entries}

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def at(self, parameter: str, expert: int | None) -> Entry:
        """Raises ``CheckpointError`` when there is none."""
        for entry in self.by_parameter.get(parameter, []):
            if entry.expert == expert:
                return entry
        raise CheckpointError(f"the checkpoint has no tensor for '{parameter}'; it is incomplete")

    def read(self, parameter: str) -> np.ndarray:
        """A whole parameter, floats in float32, in memory of its own."""
        entries = self.by_parameter.get(parameter) or [self.at(parameter, None)]
        parts = [_wide(from_raw(entry.tensor.read())) for entry in entries]
        return np.array(parts[0]) if entries[0].expert is None else np.stack(parts)

    @property
    def nbytes(self) -> int:
        return sum(entry.tensor.nbytes for entry in self.entries)


def _wide(x: np.ndarray) -> np.ndarray:
    return astype(x, "float32") if x.dtype.name in ("bfloat16", "float16", "float64") else x


def raw_part(raw: RawTensor, expert: int) -> RawTensor:
    """One expert's part of a stacked tensor."""
    part = raw.data.reshape(raw.shape[0], -1)[expert]
    return RawTensor(raw.dtype, raw.shape[1:], part)


def derived(name: str, dtype: str, shape: tuple[int, ...], make: Any) -> DerivedTensor:
    return DerivedTensor(name, dtype, tuple(int(n) for n in shape), make)
