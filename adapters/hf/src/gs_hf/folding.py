"""Where a per-channel scale can be folded, found by trying.

A producer's output channels are multiplied by powers of two, which floating point carries exactly. Where a site's
channels come out multiplied by the same powers, the producer reaches it; where the block's output comes back to
what it was once every such site is divided again, nothing else was reached. No name of a layer plays a part.
"""

import re
from typing import TYPE_CHECKING

import numpy as np
import torch

from gs_core import Fold, LinearMap
from gs_hf.naming import Place
from gs_hf.probing import Change, Prober, close, columns_close, same_shape, times

if TYPE_CHECKING:
    from gs_hf.block import HFBlock


def find_folds(block: "HFBlock", tokens: np.ndarray, previous: dict[str, torch.Tensor] | None) -> list[Fold]:
    """Every place in the block where a scale disappears, norms first."""
    prober = Prober(block, tokens, previous)
    return [*norm_folds(prober), *_layer_folds(prober)]


# --- norms ---------------------------------------------------------------------------------------------------


def norm_folds(prober: Prober) -> list[Fold]:
    """Norms that can be scaled, with every site they feed; notes each one's offset in the block."""
    block = prober.block
    root = block.model.module.get_submodule(block.prefix.rstrip("."))
    found = []
    for name, module in root.named_modules():
        weight = module._parameters.get("weight")
        if weight is None or weight.ndim != 1 or any(p.ndim > 1 for p in module.parameters()):
            continue
        full = block.prefix + name
        sites = _norm_sites(prober, module, weight.shape[0])
        if sites:
            offset = norm_offset(module, _inputs(prober, module))
            if offset is not None:
                block.norm_offsets[full] = offset
                found.append(Fold(full, tuple(sites), int(weight.shape[0])))
    return found


def _norm_sites(prober: Prober, module: torch.nn.Module, channels: int) -> list[str]:
    scale = prober.bits(channels)
    handle = module.register_forward_hook(
        lambda m, i, out: out * scale if isinstance(out, torch.Tensor) and out.shape[-1] == channels else None
    )
    restore: dict[str, Change] = {}
    try:
        while True:
            seen = prober.run(restore=restore)
            new = [
                site
                for site, x in seen.at.items()
                if site not in restore
                and same_shape(x, prober.base.at.get(site))
                and x.shape[-1] == channels
                and close(x, prober.base.at[site] * scale)
            ]
            if not new:
                break
            restore |= dict.fromkeys(new, times(1 / scale))
    finally:
        handle.remove()
    if not restore or not prober.unchanged(seen):
        return []
    return _with_unseen_experts(prober, list(restore))


def _with_unseen_experts(prober: Prober, sites: list[str]) -> list[str]:
    """Experts that no token of the probe reached are fed as those that one did."""
    found = prober.block.model.found
    parameters = {key[0] for site in sites for key in found.keys_at[site] if key[1] is not None}
    patterns = {pattern(site) for site in sites if pattern(site) != site}
    more = [
        site
        for site, keys in found.keys_at.items()
        if site.startswith(prober.block.prefix) and (keys[0][0] in parameters or pattern(site) in patterns)
    ]
    return list(dict.fromkeys([*sites, *more]))


def _inputs(prober: Prober, module: torch.nn.Module) -> tuple:
    """What a module is called with."""
    inputs: list[tuple] = []
    handle = module.register_forward_pre_hook(lambda m, given: inputs.append(given))
    try:
        prober.run()
    finally:
        handle.remove()
    return inputs[0] if inputs else ()


def norm_offset(module: torch.nn.Module, inputs: tuple) -> float | None:
    """0 for a norm that multiplies by its weight, 1 for one that multiplies by 1 + weight, None for another."""
    if len(inputs) != 1:
        return None  # it wants more than one tensor: nothing that this can fold into
    bias, weight = module._parameters.get("bias"), module._parameters["weight"]
    assert weight is not None
    kept = weight.data.clone()
    try:
        for offset in (0.0, 1.0):
            weight.data.fill_(-offset)
            out = module(*inputs)
            if close(out, torch.zeros_like(out) + (0 if bias is None else bias)):
                return offset
    finally:
        weight.data.copy_(kept)
    return None


# --- layers (value → o, up → down) ---------------------------------------------------------------------------


def _layer_folds(prober: Prober) -> list[Fold]:
    found: list[Fold] = []
    tried: dict[str, list[tuple[str, np.ndarray | None, int]]] = {}
    block = prober.block
    for name, layer in block.layers.items():
        places = block.model.found.places[name]
        kind = pattern(name)
        if len(places) != 1 or layer.site not in prober.base.at:
            continue
        if kind not in tried:
            tried[kind] = _reached(prober, places[0], layer.shape[0], layer.site)
            for site, index, head in tried[kind]:
                for like in (n for n in block.layers if pattern(n) == kind):
                    target = _counterpart(name, like, site)
                    if target in block.sites:
                        found.append(Fold(like, (target,), block.layers[like].shape[0], index, head))
    return found


def _reached(prober: Prober, place: Place, channels: int, own_site: str) -> list[tuple[str, np.ndarray | None, int]]:
    """The one site whose channels are this layer's output channels, the channel behind each, and how many mix."""
    scale = prober.bits(channels)
    seen = prober.run(rows=(place, channels, times(scale)))
    for site, x in seen.at.items():
        base = prober.base.at.get(site)
        if site == own_site or not same_shape(x, base) or base is None or x.shape[-1] % channels:
            continue
        if x.shape[-1] == channels and close(x, base * scale):
            index = None
        else:
            index = _index(prober, place, channels, site, base)
            if index is None:
                continue
        expanded = scale if index is None else scale[torch.from_numpy(index).to(scale.device)]
        rescaled = prober.run(rows=(place, channels, times(scale)), restore={site: times(1 / expanded)})
        if prober.unchanged(rescaled):
            return [(site, index, _head(prober, place, channels, site, index))]
    return []


def _head(prober: Prober, place: Place, channels: int, site: str, index: np.ndarray | None) -> int:
    """How many neighbouring channels can be mixed, each group alike: 1 where they only pass one by one."""
    base = prober.base.at[site]

    def passes(size: int) -> bool:
        if index is not None and not _in_groups(index, size):
            return False
        mix, _ = torch.linalg.qr(torch.randn(size, size, generator=prober.generator))
        mixed = LinearMap((mix,), orthogonal=True)
        seen = prober.run(rows=(place, channels, mixed.apply), restore={site: mixed.undo})
        return close(seen.at[site], mixed.apply(base)) and prober.unchanged(seen)

    sizes = [size for size in range(2, channels + 1) if channels % size == 0 and base.shape[-1] % size == 0]
    if not sizes or not passes(sizes[0]):
        return 1
    return next(size for size in reversed(sizes) if passes(size))


def _in_groups(index: np.ndarray, size: int) -> bool:
    """Whether site channels come from producer channels in whole groups of neighbours, in order."""
    first = index.reshape(-1, size)[:, :1]
    return bool((first % size == 0).all() and (index.reshape(-1, size) == first + np.arange(size)).all())


def _index(prober: Prober, place: Place, channels: int, site: str, base: torch.Tensor) -> np.ndarray | None:
    """Read each site channel's producer channel bit by bit: double the channels whose number has that bit."""
    number = torch.arange(channels, device=base.device)
    index = torch.zeros(base.shape[-1], dtype=torch.int64, device=base.device)
    for bit in range(max(1, (channels - 1).bit_length())):
        scale = 1.0 + ((number >> bit) & 1).float()
        seen = prober.run(rows=(place, channels, times(scale))).at.get(site)
        if not same_shape(seen, base) or seen is None:
            return None
        doubled = columns_close(seen, 2 * base)
        if not bool((doubled | columns_close(seen, base)).all()):
            return None
        index |= doubled.to(torch.int64) << bit
    # A channel that is zero on these tokens looks both doubled and not: nothing is known about it.
    if bool((base.abs().amax(0) == 0).any()) or int(index.max()) >= channels:
        return None
    return index.cpu().numpy()


def pattern(name: str) -> str:
    """A layer's name with the numbers of experts left open (the block's own number stays)."""
    return re.sub(r"(?<=experts)\.\d+(?=\.)", ".*", name)


def _counterpart(name: str, like: str, site: str) -> str:
    """The site that is to ``like`` what ``site`` is to ``name``."""
    mine, its = re.findall(r"(?<=experts)\.\d+(?=\.)", name), re.findall(r"(?<=experts)\.\d+(?=\.)", like)
    for a, b in zip(mine, its, strict=True):
        site = site.replace(f"experts{a}.", f"experts{b}.", 1)
    return site
