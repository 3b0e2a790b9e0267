"""Running a block on a few tokens with some tensors changed, to see what follows what."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

import torch

from gs_core import LinearMap
from gs_core.comparing import equivalent
from gs_core.interfaces import Batch
from gs_core.probing import Change, Prober, Seen, same_shape
from gs_hf.running import take_up
from gs_hf.watch import Use

if TYPE_CHECKING:
    from gs_hf.block import HFBlock


SAME_INPUT_TOLERANCE = 1 / 8
"""Fraction of the allowance for rounding. The input of a product counts as unchanged if it differs by less."""


class HFProber(Prober):
    """See ``gs_core.probing.Prober``. Most of a block computes what it did: before what is changed, and behind where
    that is undone. On a few tokens all the time of a product is its weight's way to the processor, so products are
    remembered."""

    def __init__(self, block: "HFBlock", batch: Batch):
        self.block = block
        self._known: dict[Use, tuple[torch.Tensor, torch.Tensor]] = {}
        super().__init__(batch)

    def run(self, *changes: Change, restore: Mapping[str, LinearMap] | None = None) -> Seen:
        found, at, restore = self.block.model.found, dict[str, torch.Tensor](), restore or {}
        layers = [(found.places[name][0], map, channels) for name, map, channels in changes if name in found.places]

        def on_use(use: Use, x: torch.Tensor, compute: Callable, weight: torch.Tensor) -> torch.Tensor:
            site = found.site_of.get((use.parameter, use.expert))
            if site is not None:
                at.setdefault(site, x.reshape(-1, x.shape[-1]).clone())
                if site in restore:
                    x = restore[site].undo(x)
            y = self._product(use, x, compute)
            for place, map, channels in layers:
                if (use.parameter, use.expert) == (place.parameter, place.expert):
                    rows = y[..., place.start : place.start + channels]
                    rows.copy_(map.apply(rows))
            return y

        with ExitStack() as hooks:
            for name, map, channels in changes:
                if name not in found.places:
                    norm = self.block.model.module.get_submodule(name)
                    hooks.callback(norm.register_forward_hook(partial(_changed, map, channels)).remove)
            tokens, previous = self.batch
            outputs = self.block.compute(tokens, take_up(previous, self.block.model.device), on_use)
        return Seen(at, outputs["hidden"].clone())

    def _product(self, use: Use, x: torch.Tensor, compute: Callable) -> torch.Tensor:
        """Of a weight, the caller's to change."""
        if use not in self._known:
            self._known[use] = x.clone(), compute(x).clone()
        before, product = self._known[use]
        return product.clone() if same_shape(before, x) and equivalent(before, x, SAME_INPUT_TOLERANCE) else compute(x)


def _changed(map: LinearMap, channels: int, module: torch.nn.Module, given: tuple, out: object) -> torch.Tensor | None:
    return map.apply(out) if isinstance(out, torch.Tensor) and out.shape[-1] == channels else None
