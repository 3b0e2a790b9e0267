"""Prove it: after a transform the float block must compute what it computed before, on real activations."""

from collections import Counter
from collections.abc import Sequence

from gs_core.arrays import Array
from gs_core.comparing import channel_error
from gs_core.interfaces import Batch, Block, Transform
from gs_core.probing import SAMPLES, TOKENS, on_few

PROOF_TOLERANCE = 1e-3
"""A transform is kept when the channels of the block's output change by less than this on average, in float32."""


def apply_proved(
    block: Block, transforms: Sequence[Transform], batch: Batch
) -> tuple[list[Transform], list[tuple[Transform, str]]]:
    """Apply transforms to a block: those that were really applied, and those that were dropped, with reasons.

    All are tried together first, which costs one run of the block; only where that fails is each tried alone. A few
    tokens do, since a channel that computes something else does so for each; but not for sites that see some of them
    alone, those of experts: these are proved on the whole batch.
    """
    if not transforms:
        return [], []
    seen: Counter[str] = Counter()

    def run(tried: Batch) -> Array:
        seen.clear()
        return block.run(*tried, lambda site, x: seen.update({site: x.shape[0]}))["hidden"]

    before, few = on_few(run, batch, SAMPLES, TOKENS)
    if any(seen[site] < few[0].size for transform in transforms for site in transform.sites):
        before, few = run(batch), batch

    def attempt(chosen: Sequence[Transform]) -> tuple[list[Transform], str | None]:
        applied, undos = [], []
        try:
            for transform in chosen:
                effective, undo = block.apply(transform)
                applied.append(effective)
                undos.append(undo)
            change = channel_error(before, block.run(*few)["hidden"])
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
