"""Apply transforms to a block only if the block computes the same function with them."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from gs_core.arrays import Array, dtype_name
from gs_core.comparing import EQUIVALENCE_TOLERANCE, relative_error, unexplained_change
from gs_core.interfaces import Batch, Block, ChannelScale, Transform
from gs_core.probing import SAMPLES, TOKENS, on_few


@dataclass
class VerifiedTransforms:
    """Result of ``apply_verified``.

    Attributes:
        applied: the applied transforms. The stored dtype of a norm may have rounded their scales.
        dropped: refused transforms, each with the reason.
        rounding_error: error of the block's output in working precision relative to the float64 output:
            ``sqrt(sum(error²) / sum(output²))``. ``None`` if nothing was applied or float64 is not available.
    """

    applied: list[Transform] = field(default_factory=list)
    dropped: list[tuple[Transform, str]] = field(default_factory=list)
    rounding_error: float | None = None


def apply_verified(block: Block, transforms: Sequence[Transform], batch: Batch) -> VerifiedTransforms:
    """Apply the transforms that do not change the function of the block.

    The block is verified in float64 (``Block.verifying``). With float64 parameters equivalent blocks agree to 1e-9 in
    every channel, however large other channels are. All transforms are verified together; if that fails, one at a time.
    Then they are applied in working precision, and the rounding error is measured.

    A few tokens of ``batch`` are enough, except for sites that receive only some tokens (experts): their transforms are
    verified on the whole batch.
    """
    if not transforms:
        return VerifiedTransforms()
    with block.verifying():
        expected, few = _expected(block, transforms, batch)
        kept, dropped = _verified(block, transforms, expected, few)
    verified = VerifiedTransforms(dropped=dropped)
    for transform in kept:
        try:
            verified.applied.append(block.apply(transform)[0])
        except ValueError as error:
            verified.dropped.append((transform, str(error)))
    if verified.applied and dtype_name(expected) == "float64":
        verified.rounding_error = relative_error(expected, block.run(*few)["hidden"]) ** 0.5
    return verified


def _expected(block: Block, transforms: Sequence[Transform], batch: Batch) -> tuple[Array, Batch]:
    """The block's output before the transforms, and the batch that it was computed on."""
    seen: Counter[str] = Counter()

    def run(tried: Batch) -> Array:
        seen.clear()
        return block.run(*tried, lambda site, x: seen.update({site: x.shape[0]}))["hidden"]

    expected, few = on_few(run, batch, SAMPLES, TOKENS)
    if any(seen[site] < few[0].size for transform in transforms for site in transform.sites):
        return run(batch), batch
    return expected, few


def _verified(
    block: Block, transforms: Sequence[Transform], expected: Array, few: Batch
) -> tuple[list[Transform], list[tuple[Transform, str]]]:
    """Transforms that can be applied together, and the others with reasons. Leaves the block unchanged."""
    undos: list[Callable[[], None]] = []

    def undo(down_to: int) -> None:
        while len(undos) > down_to:
            undos.pop()()

    def refusal(chosen: Sequence[Transform]) -> str | None:
        before = len(undos)
        try:
            for transform in chosen:
                undos.append(block.apply(_exact(transform, expected))[1])
            change = unexplained_change(expected, block.run(*few)["hidden"])
            if change <= EQUIVALENCE_TOLERANCE:
                return None
            why = f"a channel of the float block would change by {change:.1e}, more than {EQUIVALENCE_TOLERANCE:.0e}"
        except ValueError as error:
            why = str(error)
        undo(before)
        return why

    why = refusal(transforms)
    if why is None:
        kept, dropped = list(transforms), []
    elif len(transforms) == 1:
        kept, dropped = [], [(transforms[0], why)]
    else:
        reasons = [(transform, refusal([transform])) for transform in transforms]
        kept = [transform for transform, why in reasons if why is None]
        dropped = [(transform, why) for transform, why in reasons if why is not None]
    undo(0)
    return kept, dropped


def _exact(transform: Transform, expected: Array) -> Transform:
    """The transform in the precision of the verification."""
    if isinstance(transform, ChannelScale) or dtype_name(expected) != "float64":
        return transform
    return replace(transform, map=transform.map.as_float64())
