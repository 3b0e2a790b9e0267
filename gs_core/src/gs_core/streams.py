"""What reaches a block and what it returns, batch by batch, read from disk when it is asked for."""

from collections.abc import Iterator, Mapping, Sequence
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


Pick = tuple[int, slice]
"""A batch by its number, and the samples of it that are meant."""


def minibatches(sizes: Sequence[int], samples: int, seed: int | Sequence[int]) -> Iterator[list[Pick]]:
    """Walk over batches of these sizes for ever, about ``samples`` samples at a time, each once before any again.

    A batch is read for one minibatch at most: a larger one is cut, smaller ones are taken together.
    """
    random = np.random.default_rng(seed)
    pieces = [(n, slice(i, min(i + samples, size))) for n, size in enumerate(sizes) for i in range(0, size, samples)]
    while True:
        picked: list[Pick] = []
        for number in random.permutation(len(pieces)):
            picked.append(pieces[number])
            if sum(rows.stop - rows.start for _, rows in picked) >= samples:
                yield picked
                picked = []
        if picked:
            yield picked


def pick(arrays: Mapping[str, RawTensor], samples: int, rows: slice) -> dict[str, RawTensor]:
    """Some samples of what a block returned for a batch of so many."""

    def part(raw: RawTensor) -> RawTensor:
        if not raw.shape or raw.shape[0] != samples:
            return raw
        each = raw.nbytes // samples
        shape = (len(range(samples)[rows]), *raw.shape[1:])
        return RawTensor(raw.dtype, shape, raw.data[rows.start * each : rows.stop * each])

    return {name: part(raw) for name, raw in arrays.items()}


def pick_batch(batch: Batch, rows: slice) -> Batch:
    """Some samples of a batch."""
    tokens, previous = batch
    return tokens[rows], None if previous is None else pick(previous, len(tokens), rows)
