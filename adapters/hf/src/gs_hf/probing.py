"""Running a block on a few tokens with some tensors rescaled, to see what follows what.

Powers of two, which floating point carries exactly, mark channels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from gs_core import CalibrationError
from gs_hf.naming import Place
from gs_hf.watch import Use

if TYPE_CHECKING:
    from gs_hf.block import HFBlock

SAMPLES, TOKENS = 2, 16
TOLERANCE = 1e-4
Change = Callable[[torch.Tensor], torch.Tensor]


@dataclass
class Seen:
    """One probing run: what arrived at each site, and what the block returned."""

    at: dict[str, torch.Tensor]
    hidden: torch.Tensor


class Prober:
    """Runs a block on a few tokens with some tensors rescaled."""

    def __init__(self, block: "HFBlock", tokens: np.ndarray, previous: dict[str, torch.Tensor] | None):
        self.block = block
        self.generator = torch.Generator().manual_seed(0)
        self.tokens, self.previous = _cut(tokens, previous)
        try:
            self.base = self.run()
        except CalibrationError:  # some models do not take sequences as short as the cut
            self.tokens, self.previous = tokens, previous
            self.base = self.run()

    def bits(self, channels: int) -> torch.Tensor:
        """Random ones and twos."""
        scale = 1.0 + torch.randint(0, 2, (channels,), generator=self.generator).float()
        scale[0], scale[-1] = 1.0, 2.0
        return scale.to(self.block.model.device)

    def run(
        self,
        rows: tuple[Place, int, Change] | None = None,
        restore: dict[str, Change] | None = None,
    ) -> Seen:
        """``rows``: change that many output rows of a product. ``restore``: change what arrives at these sites."""
        at: dict[str, torch.Tensor] = {}
        restore = restore or {}

        def on_use(use: Use, x: torch.Tensor, compute: Callable, weight: torch.Tensor) -> torch.Tensor:
            site = self.block.model.found.site_of.get((use.parameter, use.expert))
            if site is not None:
                at.setdefault(site, x.reshape(-1, x.shape[-1]).clone())
                if site in restore:
                    x = restore[site](x)
            y = compute(x)
            if rows is not None and (use.parameter, use.expert) == (rows[0].parameter, rows[0].expert):
                place, count, change = rows
                y = y.clone()
                part = y[..., place.start : place.start + count]
                part.copy_(change(part))
            return y

        outputs = self.block.compute(self.tokens, self.previous, on_use)
        return Seen(at, outputs["hidden"].clone())

    def unchanged(self, seen: Seen) -> bool:
        return close(seen.hidden, self.base.hidden)


def _cut(
    tokens: np.ndarray, previous: dict[str, torch.Tensor] | None
) -> tuple[np.ndarray, dict[str, torch.Tensor] | None]:
    """The first tokens of the first samples, where it can be told which axes of what came before those are."""
    if previous is None:
        return tokens[:SAMPLES, :TOKENS], None
    cut = {}
    for name, value in previous.items():
        axes = tuple(value.shape[:2])
        if axes == tokens.shape:
            cut[name] = value[:SAMPLES, :TOKENS].clone()
        elif axes == tokens.shape[::-1]:
            cut[name] = value[:TOKENS, :SAMPLES].clone()
        elif name == "length":
            cut[name] = value
        else:
            return tokens, previous
    return tokens[:SAMPLES, :TOKENS], cut


def times(scale: torch.Tensor) -> Change:
    return lambda x: x * scale


def same_shape(x: torch.Tensor | None, y: torch.Tensor | None) -> bool:
    return x is not None and y is not None and x.shape == y.shape


def close(x: torch.Tensor, y: torch.Tensor) -> bool:
    limit = TOLERANCE * float(y.abs().mean()) + 1e-12
    return bool(torch.isfinite(x).all()) and float((x - y).abs().max()) <= limit + TOLERANCE * float(y.abs().max())


def columns_close(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (x - y).abs().amax(0) <= TOLERANCE * y.abs().amax(0)
