"""Learning a block's roundings: the quantized block is to return what the float block does."""

from collections.abc import Sequence
from contextlib import nullcontext

import torch

from gs_autoround.rounding import Rounding
from gs_core import Array, Block, Data, QuantizedTensor
from gs_core.arrays import from_raw
from gs_core.guidance import Distance
from gs_core.streams import Pick, minibatches, pick, pick_batch

PLAIN = Distance()
CHECKS, CHECK_SAMPLES = 10, 8
"""How often the roundings are held against the best so far, and by how many samples."""


class Reconstruction:
    """A block that computes with its roundings, and how far it is from the float block.

    Inputs come from the quantized blocks before, targets from the float stream: a block also makes up for those
    before it.
    """

    def __init__(
        self,
        block: Block,
        roundings: Sequence[Rounding],
        data: Data,
        bfloat16: bool,
        distance: Distance = PLAIN,
    ):
        self.block, self.roundings, self.data, self.bfloat16 = block, roundings, data, bfloat16
        self.distance = distance

    def loss(self, picked: Pick) -> torch.Tensor:
        number, rows = picked
        tokens, previous = pick_batch(self.data.batches[number], rows)
        weights = {rounding.name: rounding.weight for rounding in self.roundings}
        kind = self.roundings[0].weight.device.type
        with torch.autocast(kind, torch.bfloat16) if self.bfloat16 else nullcontext():
            hidden = self.block.run(tokens, previous, self._as_seen, weights)["hidden"].float()
        target = pick(self.data.targets[number], self.data.sizes[number], rows)["hidden"]
        wanted = torch.from_numpy(from_raw(target)).to(hidden)
        return self.distance(hidden, wanted)

    def _as_seen(self, name: str, x: Array) -> Array | None:
        """Activations as an engine sees them; their rounding lets gradients straight through."""
        seen = self.data.as_seen(name, x.detach())
        return None if seen is None else x + (seen - x.detach())

    def total(self, picked: Sequence[Pick]) -> float:
        """The loss of several, without learning from them."""
        with torch.no_grad():
            return sum(float(self.loss(p)) * _samples(p) for p in picked) / sum(map(_samples, picked))

    def step(self, picked: Sequence[Pick], step: float) -> float:
        """One step of all roundings by one minibatch; returns its loss."""
        found = 0.0
        for p in picked:
            loss = self.loss(p) * (_samples(p) / sum(map(_samples, picked)))
            loss.backward()
            found += float(loss.detach())
        for rounding in self.roundings:
            rounding.update(step)
            rounding.refresh()
        return found

    def tensors(self) -> dict[str, QuantizedTensor]:
        return {rounding.name: rounding.tensor() for rounding in self.roundings}


def learn(
    reconstruction: Reconstruction, steps: int, samples: int, rate: float, seed: Sequence[int]
) -> tuple[dict[str, QuantizedTensor], list[float]]:
    """Signed gradient descent with steps that fall linearly to zero.

    Returns the best tensors that one check minibatch saw, the start among them, and every step's loss.
    """
    walk = minibatches(reconstruction.data.sizes, samples, seed)
    check = next(minibatches(reconstruction.data.sizes, CHECK_SAMPLES, seed))
    best, kept = reconstruction.total(check), reconstruction.tensors()
    losses = []
    for step in range(steps):
        losses.append(reconstruction.step(next(walk), rate * (1 - step / steps)))
        if (step + 1) * CHECKS // steps > step * CHECKS // steps:
            found = reconstruction.total(check)
            if found <= best:
                best, kept = found, reconstruction.tensors()
    return kept, losses


def _samples(picked: Pick) -> int:
    return picked[1].stop - picked[1].start
