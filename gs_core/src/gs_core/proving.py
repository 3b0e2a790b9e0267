"""Prove it: after a transform the float block must compute what it computed before, on real activations."""

from collections.abc import Sequence

from gs_core.interfaces import Batch, Block, Transform
from gs_core.probing import on_few
from gs_core.watching import channel_error

PROOF_TOLERANCE = 1e-3
"""A transform is kept when the channels of the block's output change by less than this on average, in float32."""
SAMPLES, TOKENS = 2, 64
"""To prove it on: a channel that computes something else does so for every token."""


def apply_proved(
    block: Block, transforms: Sequence[Transform], batch: Batch
) -> tuple[list[Transform], list[tuple[Transform, str]]]:
    """Apply transforms to a block: those that were really applied, and those that were dropped, with reasons.

    All are tried together first, which costs one run of the block; only where that fails is each tried alone.
    """
    if not transforms:
        return [], []
    before, batch = on_few(lambda few: block.run(*few)["hidden"], batch, SAMPLES, TOKENS)

    def attempt(chosen: Sequence[Transform]) -> tuple[list[Transform], str | None]:
        applied, undos = [], []
        try:
            for transform in chosen:
                effective, undo = block.apply(transform)
                applied.append(effective)
                undos.append(undo)
            change = channel_error(before, block.run(*batch)["hidden"])
            if change <= PROOF_TOLERANCE:
                return applied, None
            refused = f"the float block changes by {change:.1e}, over {PROOF_TOLERANCE:.0e}"
        except ValueError as error:
            refused = str(error)
        for undo in reversed(undos):
            undo()
        return [], refused

    applied, refused = attempt(transforms)
    if refused is None:
        return applied, []
    if len(transforms) == 1:
        return [], [(transforms[0], refused)]
    kept, dropped = [], []
    for transform in transforms:
        applied, refused = attempt([transform])
        kept += applied
        if refused is not None:
            dropped.append((transform, refused))
    return kept, dropped
