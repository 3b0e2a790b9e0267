"""Which weights of a block write to the residual stream, found by trying."""

from collections.abc import Callable

import torch

from gs_core.applying import Change
from gs_core.comparing import equivalent
from gs_core.probing import pattern
from gs_hf.probing import HFProber
from gs_hf.running import Outputs, take_up
from gs_hf.watch import OnUse, Use


def writers(prober: HFProber) -> list[str]:
    """Parameters whose products are added to the stream, each channel to its own.

    With every other product of the block held fixed, turning one's channels round must turn round just what it adds
    to the block's output.
    """
    hidden, products = prober.block.model.hidden, _record(prober)
    found = []
    for parameter in dict.fromkeys(p for (p, _), ys in products.items() if ys[0].shape[-1] == hidden):
        changes: list[Change] = [lambda y: y, torch.zeros_like, lambda y: y.flip(-1)]
        base, nothing, turned = (_replay(prober, products, parameter, change) for change in changes)
        share = base - nothing
        if bool((share != 0).any()) and equivalent(nothing + share.flip(-1), turned):
            found.append(parameter)
    patterns = {pattern(parameter) for parameter in found}
    return [p for p in prober.block.parameters if p in found or (pattern(p) != p and pattern(p) in patterns)]


def _record(prober: HFProber) -> dict[tuple[str, int | None], list[torch.Tensor]]:
    """Every product of the block, in order."""
    products: dict[tuple[str, int | None], list[torch.Tensor]] = {}

    def keep(use: Use, x: torch.Tensor, multiply: Callable, weight: torch.Tensor) -> torch.Tensor:
        y = multiply(x)
        products.setdefault((use.parameter, use.expert), []).append(y.clone())
        return y

    compute(prober, keep)
    return products


def _replay(
    prober: HFProber, products: dict[tuple[str, int | None], list[torch.Tensor]], parameter: str, change: Change
) -> torch.Tensor:
    """The block's output with recorded products in place of computed ones, those of one parameter changed."""
    left = {key: iter(ys) for key, ys in products.items()}

    def answer(use: Use, x: torch.Tensor, multiply: Callable, weight: torch.Tensor) -> torch.Tensor:
        y = next(left[use.parameter, use.expert]).clone()
        return change(y) if use.parameter == parameter else y

    return compute(prober, answer)["hidden"].clone()


def passing(prober: HFProber, writing: list[str]) -> torch.Tensor:
    """The block's output when nothing is writing to the stream."""

    def silence(use: Use, x: torch.Tensor, multiply: Callable, weight: torch.Tensor) -> torch.Tensor:
        y = multiply(x)
        return torch.zeros_like(y) if use.parameter in writing else y

    return compute(prober, silence)["hidden"].clone()


def compute(prober: HFProber, on_use: OnUse | None = None) -> Outputs:
    """Run the block on the prober's tokens."""
    block, (tokens, previous) = prober.block, prober.batch
    return block.compute(tokens, take_up(previous, block.model.device), on_use)
