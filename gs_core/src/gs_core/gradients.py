"""What an error of a block's output does to the model's predictions, with one block in memory.

Before the first block is quantized, the float model runs over some of the calibration samples block by block, and back
from the last to the first: what is left on disk is the gradient of its loss at what each block returns.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gs_core import memory
from gs_core.arrays import RawTensor
from gs_core.interfaces import Batch, Block, Model
from gs_core.journal import Activations, Journal
from gs_core.stages import Progress
from gs_core.streams import Arriving, Pick, pick_batch

TOKENS = 8192
"""Of the calibration data: twice as many make no difference to what an algorithm finds."""
GRADIENT, FORWARD = "-gradient", "-forward"
"""The streams of gradients, and of what blocks return on the way there."""


def picks(batches: Sequence[np.ndarray]) -> list[Pick]:
    """Single samples of about ``TOKENS`` tokens together, spread evenly over the batches."""
    every = [(number, slice(row, row + 1)) for number, tokens in enumerate(batches) for row in range(len(tokens))]
    wanted = max(1, TOKENS // batches[0].shape[1])
    return every[:: max(1, len(every) // wanted)]


def prepare(model: Model, journal: Journal, batches: Sequence[np.ndarray], start: int, progress: Progress) -> None:
    """Write the gradient at the outputs of each block from ``start`` on if one is missing or damaged."""
    samples = [batches[number][rows] for number, rows in picks(batches)]
    last = len(model.blocks) - 1
    if all(Activations(journal, index, GRADIENT).are_intact(len(samples)) for index in range(start, last + 1)):
        return

    visits = 2 * last + 1 - start
    visit = iter(range(visits))

    def load(index: int, arriving: Sequence[Batch]) -> Block:
        memory.release()
        progress("gradients", next(visit), visits)
        return model.block(index, arriving[0])

    for index in range(last + 1):
        arriving, returned = Arriving(journal, index, samples, FORWARD), Activations(journal, index, FORWARD)
        block = load(index, arriving)
        for number, batch in enumerate(arriving):
            returned.write(number, block.run(*batch))
    returned, gradient = Activations(journal, last, FORWARD), Activations(journal, last, GRADIENT)
    for number, tokens in enumerate(samples):
        gradient.write(number, model.loss_gradient(tokens, returned.read(number), seed=number))
    returned.discard()
    for index in range(last, start, -1):
        arriving, gradient = Arriving(journal, index, samples, FORWARD), Activations(journal, index, GRADIENT)
        block, before = load(index, arriving), Activations(journal, index - 1, GRADIENT)
        for number, batch in enumerate(arriving):
            before.write(number, block.backward(*batch, gradient.read(number)))
        Activations(journal, index - 1, FORWARD).discard()
    for index in range(start):
        Activations(journal, index, FORWARD).discard()


class Gradients(Sequence[tuple[Batch, Mapping[str, RawTensor]]]):
    """The samples that reach float block ``index``, each with the gradient at what it returns (``Data.gradients``)."""

    def __init__(self, journal: Journal, index: int, tokens: Sequence[np.ndarray], floats: Sequence[Batch]):
        self._picks, self._floats = picks(tokens), floats
        self._gradients = Activations(journal, index, GRADIENT)

    def __len__(self) -> int:
        return len(self._picks)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[n] for n in range(*number.indices(len(self)))]
        batch, rows = self._picks[number]
        return pick_batch(self._floats[batch], rows), self._gradients.read(range(len(self))[number])
