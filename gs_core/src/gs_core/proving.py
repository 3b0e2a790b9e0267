"""Apply transforms to a block only if the block computes the same function with them."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from gs_core.arrays import Array, dtype_name
from gs_core.comparing import EQUIVALENCE_TOLERANCE, relative_error, unexplained_change
from gs_core.interfaces import Batch, Block, ChannelScale, Transform
from gs_core.probing import SAMPLES, TOKENS, on_few


@dataclass
class Proved:
    """Result of ``apply_proved``.

    Attributes:
        applied: transforms as they were applied; the stored dtype of a norm may have rounded a scale.
        dropped: transforms that were refused, each with the reason.
        rounding_error: error of the block's output in working precision, relative to the float64 output: root of the
            summed squared error over the summed squares. ``None`` if nothing was applied or there is no float64.
    """

    applied: list[Transform] = field(default_factory=list)
    dropped: list[tuple[Transform, str]] = field(default_factory=list)
    rounding_error: float | None = None


def apply_proved(block: Block, transforms: Sequence[Transform], batch: Batch) -> Proved:
    """Apply the transforms that leave the block's function as it is.

    The function is verified in float64 (``Block.verifying``): with float64 parameters an equivalent block agrees to
    1e-9 in every channel, however large other channels are. Then the transforms are applied in working precision, and
    its rounding error is measured. All transforms are verified together first; if that fails, one at a time.

    A few tokens of ``batch`` are enough, except for sites that receive only some tokens (experts): their transforms are
    verified on the whole batch.
    """
    if not transforms:
        return Proved()
    with block.verifying():
        expected, few = _expected(block, transforms, batch)
        kept, dropped = _verified(block, transforms, expected, few)
    proved = Proved(dropped=dropped)
    for transform in kept:
        try:
            proved.applied.append(block.apply(transform)[0])
        except ValueError as error:
            proved.dropped.append((transform, str(error)))
    if proved.applied and dtype_name(expected) == "float64":
        proved.rounding_error = relative_error(expected, block.run(*few)["hidden"]) ** 0.5
    return proved


def _expected(block: Block, transforms: Sequence[Transform], batch: Batch) -> tuple[Array, Batch]:
    """The block's output before any transform, and the tokens it was computed on."""
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
    """Transforms that can be applied together, and the others with reasons. The block is left as it was."""
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
            why = f"the float block would change by {change:.1e} of a channel, over {EQUIVALENCE_TOLERANCE:.0e}"
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
    """The transform in the precision that it is verified in."""
    if isinstance(transform, ChannelScale) or dtype_name(expected) != "float64":
        return transform
    return replace(transform, map=transform.map.as_float64())
