"""Where a per-channel scale can be folded: the norms and layers of a block, each tried (see ``gs_core.probing``)."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from gs_core import Fold
from gs_core.applying import Norm
from gs_core.comparing import equivalent
from gs_core.interfaces import Batch
from gs_core.known_folds import in_order
from gs_core.probing import covered, layer_folds, pattern, reached_by_norm
from gs_hf.probing import HFProber

if TYPE_CHECKING:
    from gs_hf.block import HFBlock


def find_folds(block: "HFBlock", batch: Batch) -> list[Fold]:
    """Every place in the block where a scale disappears, norms first."""
    with block.verifying():
        return _find_folds(block, HFProber(block, batch))


def _find_folds(block: "HFBlock", prober: HFProber) -> list[Fold]:
    folds = block.model.folds
    places = block.model.found.places
    layers = {n: (layer.shape[0], layer.site) for n, layer in block.layers.items() if len(places[n]) == 1}
    channels = {name: int(norm.weight.shape[0]) for name, norm in norms(block).items()}
    channels |= {name: rows for name, (rows, _) in layers.items()}
    known = folds.holding(prober, block.prefix, channels, block.sites)
    found = [*norm_folds(prober, known), *layer_folds(prober, layers, block.sites, known)]
    folds.remember(block.prefix, found)
    return [replace(fold, shifts=_shifts(block, fold)) for fold in found]


def norms(block: "HFBlock") -> dict[str, torch.nn.Module]:
    """Modules that hold a vector as their weight, and no matrix, by name."""
    root = block.model.module.get_submodule(block.prefix.rstrip("."))
    found = {}
    for name, module in root.named_modules():
        weight = module._parameters.get("weight")
        if weight is not None and weight.ndim == 1 and all(p.ndim <= 1 for p in module.parameters()):
            found[block.prefix + name] = module
    return found


def _shifts(block: "HFBlock", fold: Fold) -> bool:
    """Only what leaves a norm, or attention's average of values (hence mixing heads), moves along with a bias."""
    if fold.producer in block.norms:
        producer = block.norms[fold.producer].bias
    else:
        (place,) = block.model.found.places[fold.producer]
        producer = block.bias_of(place.parameter, place.expert) if fold.head > 1 else None
    keys = [key for site in fold.sites for key in block.model.found.keys_at[site]]
    return producer is not None and all(block.bias_of(*key) is not None for key in keys)


def norm_folds(prober: HFProber, known: Mapping[str, Fold]) -> list[Fold]:
    """Norms that can be scaled, with every site they feed; the block notes each one's parameters and offset."""
    block, found = prober.block, []
    for name, module in norms(block).items():
        weight = module._parameters["weight"]
        assert weight is not None
        fold = known.get(name)
        if fold is None and not covered(prober, known):
            sites = _with_unseen_experts(block, reached_by_norm(prober, name, int(weight.shape[0])))
            fold = Fold(name, in_order(sites, block.sites), int(weight.shape[0])) if sites else None
        offset = _norm_offset(prober, module, weight) if fold is not None else None
        if fold is not None and offset is not None:
            block.norms[name] = Norm(f"{name}.weight", block.bias_of(f"{name}.weight"), offset)
            found.append(fold)
    return found


def _with_unseen_experts(block: "HFBlock", sites: list[str]) -> list[str]:
    """Experts that no token of the probe reached are fed as those that one did."""
    found = block.model.found
    parameters = {key[0] for site in sites for key in found.keys_at[site] if key[1] is not None}
    patterns = {pattern(site) for site in sites if pattern(site) != site}
    more = [
        site
        for site, keys in found.keys_at.items()
        if site.startswith(block.prefix) and (keys[0][0] in parameters or pattern(site) in patterns)
    ]
    return list(dict.fromkeys([*sites, *more]))


def _norm_offset(prober: HFProber, module: torch.nn.Module, weight: torch.nn.Parameter) -> float | None:
    """0 for a norm that multiplies by its weight, 1 for one that multiplies by 1 + weight, None for another."""
    inputs: list[tuple] = []
    handle = module.register_forward_pre_hook(lambda m, given: inputs.append(given))
    try:
        prober.run()
    finally:
        handle.remove()
    if not inputs or len(inputs[0]) != 1:
        return None  # it wants more than one tensor: nothing that this can fold into
    bias, kept = module._parameters.get("bias"), weight.data.clone()
    try:
        for offset in (0.0, 1.0):
            weight.data.fill_(-offset)
            with prober.block.precision():
                out = module(*inputs[0])
            if equivalent(torch.zeros_like(out) + (0 if bias is None else bias), out):
                return offset
    finally:
        weight.data.copy_(kept)
    return None
