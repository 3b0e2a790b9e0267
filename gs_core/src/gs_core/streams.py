"""What reaches a block and what it returns, batch by batch, read from disk when it is asked for."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gs_core.arrays import RawTensor
from gs_core.interfaces import Batch
from gs_core.journal import Activations, Journal

FLOAT = "-float"
"""The stream of a model that nothing has quantized."""


class Arriving(Sequence[Batch]):
    """The batches that reach block ``index``."""

    def __init__(self, journal: Journal, index: int, tokens: Sequence[np.ndarray], stream: str = ""):
        self._tokens = tokens
        self._before = Activations(journal, index - 1, stream) if index else None

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[n] for n in range(*number.indices(len(self)))]
        return self._tokens[number], self._before.read(range(len(self))[number]) if self._before else None


class Returned(Sequence[Mapping[str, RawTensor]]):
    """What block ``index`` returned for each of ``count`` batches."""

    def __init__(self, journal: Journal, index: int, count: int, stream: str = ""):
        self._count, self._after = count, Activations(journal, index, stream)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[n] for n in range(*number.indices(len(self)))]
        return self._after.read(range(len(self))[number])
