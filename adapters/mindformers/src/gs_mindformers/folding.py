"""Where a per-channel scale can be folded: the norms and layers of a block, each tried (see ``gs_core.probing``)."""

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import mindspore as ms
import numpy as np

from gs_core import Fold, LinearMap
from gs_core.applying import Kept, Norm, change_outputs
from gs_core.comparing import equivalent
from gs_core.interfaces import Batch
from gs_core.known_folds import in_order
from gs_core.probing import Change, Prober, Seen, covered, layer_folds, pattern, reached_by_norm
from gs_mindformers.running import ERRORS
from gs_mindformers.standins import Swap, eager, swapped
from gs_mindformers.tensors import to_numpy, to_parameter, to_tensor
from gs_mindformers.watch import Use, calling

if TYPE_CHECKING:
    from gs_mindformers.block import MFBlock

GAINS = ("weight", "gamma")


def find_folds(block: "MFBlock", batch: Batch) -> list[Fold]:
    """Every place in the block where a scale disappears, norms first."""
    prober, folds = MFProber(block, batch), block.model.folds
    layers = {name: (layer.shape[0], layer.site) for name, layer in block.layers.items()}
    norms = _norms(prober)
    channels = {path: int(gain.shape[0]) for path, gain in norms.items()}
    channels |= {name: rows for name, (rows, _) in layers.items()}
    known = folds.holding(prober, block.name, channels, block.sites)
    found = [*_norm_folds(prober, norms, known), *layer_folds(prober, layers, block.sites, known)]
    folds.remember(block.name, found)
    return found


class MFProber(Prober):
    """See ``gs_core.probing.Prober``."""

    def __init__(self, block: "MFBlock", batch: Batch):
        self.block = block
        self.cells = dict(block.model.running().structure.network.cells_and_names())
        super().__init__(batch)

    def run(
        self, *changes: Change, restore: Mapping[str, LinearMap] | None = None, swaps: tuple[Swap, ...] = ()
    ) -> Seen:
        found, at, restore = self.block.model.found, dict[str, np.ndarray](), restore or {}

        def on_use(use: Use) -> ms.Tensor:
            site, x = found.site_of.get(use.key), use.x
            if site is not None:
                at.setdefault(site, to_numpy(x).reshape(-1, x.shape[-1]).copy())
                if site in restore:
                    x = to_tensor(restore[site].undo(to_numpy(x)))
            return use.compute(x)

        kept = Kept(self.block)
        for name, map, channels in changes:
            if name in found.places:
                # The weight, not the cell's output: an activation may stand between them.
                change_outputs(self.block, name, map.apply, kept)
            else:
                swaps = (*swaps, calling(self.cells[name], partial(_changed, map, channels)))
        try:
            return Seen(at, self.block.compute(self.batch, on_use, swaps)["hidden"].copy())
        finally:
            kept.restore()


def _changed(map: LinearMap, channels: int, compute: Any, *args: Any, **keywords: Any) -> Any:
    out = compute(*args, **keywords)
    matches = isinstance(out, ms.Tensor) and out.shape[-1] == channels
    return to_tensor(map.apply(to_numpy(out))) if matches else out


# --- norms ---------------------------------------------------------------------------------------------------


def _norms(prober: MFProber) -> dict[str, ms.Parameter]:
    """The gain of each of the block's norms, by the cell's path."""
    block, found = prober.block, {}
    structure = block.model.running().structure
    for path, cell in prober.cells.items():
        if structure.index(path) != block.index or any(p.ndim > 1 for p in cell.get_parameters()):
            continue
        gain = next((cell._params[leaf] for leaf in GAINS if cell._params.get(leaf) is not None), None)
        if gain is not None and gain.name in block.values:
            found[path] = gain
    return found


def _norm_folds(prober: MFProber, norms: Mapping[str, ms.Parameter], known: Mapping[str, Fold]) -> list[Fold]:
    block, found = prober.block, []
    for path, gain in norms.items():
        fold = known.get(path)
        if fold is None and not covered(prober, known):
            sites = _with_unseen_experts(block, reached_by_norm(prober, path, int(gain.shape[0])))
            fold = Fold(path, in_order(sites, block.sites), int(gain.shape[0])) if sites else None
        offset = _offset(prober, prober.cells[path], gain.name) if fold is not None else None
        if fold is not None and offset is not None:
            block.norms[path] = Norm(gain.name, block.beside(gain.name, "bias", "beta"), offset)
            found.append(fold)
    return found


def _with_unseen_experts(block: "MFBlock", sites: list[str]) -> list[str]:
    """Experts that no token of the probe reached are fed as those that one did."""
    patterns = {pattern(site) for site in sites if pattern(site) != site}
    return list(dict.fromkeys([*sites, *(site for site in block.sites if pattern(site) in patterns)]))


def _offset(prober: MFProber, cell: ms.nn.Cell, gain: str) -> float | None:
    """0 for a norm that multiplies by its gain, 1 for one that multiplies by 1 + gain, None for another."""
    block, inputs = prober.block, list[tuple]()

    def listen(compute: Any, *args: Any, **keywords: Any) -> Any:
        inputs.append((*args, *keywords.values()))
        return compute(*args, **keywords)

    prober.run(swaps=(calling(cell, listen),))
    if not inputs or len(inputs[0]) != 1:
        return None  # it wants more than one tensor: nothing that this can fold into
    running, bias = block.model.running(), block.beside(gain, "bias", "beta")
    wanted = 0 if bias is None else block.values[bias]
    standins = {name: to_parameter(name, block.values[name]) for name in (gain, bias) if name}
    for offset in (0.0, 1.0):
        standins[gain] = to_parameter(gain, np.full_like(block.values[gain], -offset))
        try:
            with eager(), swapped([*running.runner.inference, *running.put(standins)]):
                out = to_numpy(cell(*inputs[0]))
        except ERRORS:  # a stranger's cell that computes only within its network
            return None
        if equivalent(np.zeros_like(out) + wanted, out):
            return offset
    return None
