"""Running a block on a few tokens with some tensors changed, to see what follows what."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch

from gs_core import LinearMap
from gs_core.interfaces import Batch
from gs_core.probing import Prober, Seen
from gs_hf.running import take_up
from gs_hf.watch import Use

if TYPE_CHECKING:
    from gs_hf.block import HFBlock


class HFProber(Prober):
    """See ``gs_core.probing.Prober``. Most of a block computes what it did: before what is changed, and behind where
    that is undone. On a few tokens all the time of a product is its weight's way to the processor, so products are
    remembered."""

    def __init__(self, block: "HFBlock", batch: Batch):
        self.block = block
        self._known: dict[Use, tuple[torch.Tensor, torch.Tensor]] = {}
        super().__init__(batch)

    def run(
        self, changed: tuple[str, LinearMap, int] | None = None, restore: Mapping[str, LinearMap] | None = None
    ) -> Seen:
        found, at, restore = self.block.model.found, dict[str, torch.Tensor](), restore or {}
        name, map, channels = changed or ("", LinearMap(), 0)
        place = found.places[name][0] if name in found.places else None

        def on_use(use: Use, x: torch.Tensor, compute: Callable, weight: torch.Tensor) -> torch.Tensor:
            site = found.site_of.get((use.parameter, use.expert))
            if site is not None:
                at.setdefault(site, x.reshape(-1, x.shape[-1]).clone())
                if site in restore:
                    x = restore[site].undo(x)
            y = self._product(use, x, compute)
            if place is not None and (use.parameter, use.expert) == (place.parameter, place.expert):
                rows = y[..., place.start : place.start + channels]
                rows.copy_(map.apply(rows))
            return y

        def change(module: torch.nn.Module, given: tuple, out: object) -> torch.Tensor | None:
            return map.apply(out) if isinstance(out, torch.Tensor) and out.shape[-1] == channels else None

        handle = None
        if name and place is None:
            handle = self.block.model.module.get_submodule(name).register_forward_hook(change)
        try:
            tokens, previous = self.batch
            outputs = self.block.compute(tokens, take_up(previous, self.block.model.device), on_use)
        finally:
            if handle is not None:
                handle.remove()
        return Seen(at, outputs["hidden"].clone())

    def _product(self, use: Use, x: torch.Tensor, compute: Callable) -> torch.Tensor:
        """Of a weight, the caller's to change."""
        if use not in self._known:
            self._known[use] = x.clone(), compute(x).clone()
        before, product = self._known[use]
        return product.clone() if torch.equal(before, x) else compute(x)
