"""Training one block: AdamW with rates that fall along a cosine, by the distance from the float block."""

import math
from dataclasses import dataclass

import torch

from gs_core import Array, Data
from gs_core.arrays import from_raw
from gs_core.guidance import Distance
from gs_core.streams import Pick, minibatches, pick, pick_batch
from gs_flatquant.mapped import Computed, Mapped

FINAL = 1e-3
"""What is left of a rate at the end, relative to its start."""
CLIP_RATE = 10.0
"""Clipping learns so many times as fast as matrices."""
DISTANCE = Distance()
CHECKS, CHECK_SAMPLES = 10, 8
"""How often what was learned is held against the best so far, and by how many samples."""


@dataclass(frozen=True)
class Schedule:
    """How long, how fast, by how many samples at a time, and in which order."""

    epochs: int
    samples: int
    rate: float
    seed: tuple[int, int]

    def steps(self, data: Data) -> int:
        return self.epochs * -(-sum(data.sizes) // self.samples)


def loss(mapped: Mapped, computed: Computed, data: Data, picked: Pick) -> torch.Tensor:
    """See ``gs_core.guidance.Distance``. The block is given what float blocks before it return, as its target was."""
    number, rows = picked
    tokens, previous = pick_batch(data.floats[number], rows)

    def on_site(name: str, x: Array) -> Array | None:
        ours = computed.on_site(name, x)
        if ours is not None:
            return ours
        seen = data.as_seen(name, x.detach())  # a cache, or the input of other algorithms' layers
        return None if seen is None else x + (seen - x.detach())

    hidden = mapped.block.run(tokens, previous, on_site, computed.weights)["hidden"]
    wanted = torch.from_numpy(from_raw(pick(data.targets[number], data.sizes[number], rows)["hidden"])).to(hidden)
    return DISTANCE(hidden, wanted)


def learn(mapped: Mapped, data: Data, schedule: Schedule, maps: bool) -> list[float]:
    """Train what ``mapped`` holds, in place, and leave the best that one check minibatch saw, the start among it.

    maps: whether matrices and scales learn too, and not only clipping. Returns every step's loss.
    """
    slow, fast = list(mapped.slow()) if maps else [], list(mapped.fast())
    learned = [tensor.requires_grad_() for tensor in [*slow, *fast]]
    groups = [(slow, schedule.rate), (fast, schedule.rate * CLIP_RATE)]
    # Decoupled weight decay has nothing to say about rotations and ranges.
    optimizer = torch.optim.AdamW([{"params": p, "lr": rate} for p, rate in groups if p], weight_decay=0.0)
    steps = schedule.steps(data)
    falling = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: FINAL + (1 - FINAL) * (1 + math.cos(math.pi * step / steps)) / 2
    )
    walk = minibatches(data.sizes, schedule.samples, schedule.seed)
    check = next(minibatches(data.sizes, CHECK_SAMPLES, schedule.seed))

    def held() -> tuple[float, list[torch.Tensor]]:
        with torch.no_grad():
            computed = mapped.compute()
            found = sum(float(loss(mapped, computed, data, p)) for p in check)
        return found, [tensor.detach().clone() for tensor in learned]

    best, kept = held()
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        computed, picked = mapped.compute(), next(walk)
        total = sum(loss(mapped, computed, data, p) * (p[1].stop - p[1].start) for p in picked)
        total = total / sum(p[1].stop - p[1].start for p in picked)
        # Relative to itself: the rates then mean the same in every block.
        (total / total.detach()).backward()
        optimizer.step()
        falling.step()
        losses.append(float(total.detach()))
        if (step + 1) * CHECKS // steps > step * CHECKS // steps:
            found, now = held()
            if found <= best:
                best, kept = found, now
    for tensor, value in zip(learned, kept, strict=True):
        tensor.requires_grad_(False).copy_(value)
    return losses
