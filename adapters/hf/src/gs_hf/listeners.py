"""What a block's run tells of, and what it multiplies by."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from gs_core import Site
from gs_core.interfaces import OnSite
from gs_hf import int8
from gs_hf.caches import OnCache
from gs_hf.int8 import Rounded
from gs_hf.naming import layer_name
from gs_hf.watch import OnUse, Use, identity

if TYPE_CHECKING:
    from gs_hf.block import HFBlock


def listener(block: "HFBlock", on_site: OnSite | None, weights: Mapping[str, torch.Tensor]) -> OnUse:
    """Call ``on_site`` once for each tensor that arrives at a site, however many layers it feeds, and for each
    that leaves a layer as a key; multiply by the given weights."""
    makers = block.model.makers
    # While its storage is referred to, no other tensor has its identity; its numbers are not kept.
    last: dict[str, tuple[tuple, StorageWeakRef, torch.Tensor | None]] = {}
    rounded: dict[str, Rounded] = {}

    def on_use(use: Use, x: torch.Tensor, compute: Callable, weight: torch.Tensor) -> torch.Tensor:
        site = block.model.found.site_of.get((use.parameter, use.expert))
        if site is None or site not in block.sites:
            return compute(x)
        other = _stand_in(block, use, weights)
        if on_site is None:
            return compute(x, other)
        if site not in last or last[site][0] != identity(x):
            rows = x.reshape(-1, x.shape[-1])
            replaced = on_site(site, rows)
            last[site] = identity(x), StorageWeakRef(x.untyped_storage()), replaced
            rounded.pop(site, None)
            if replaced is None and _is_int8(block, site, len(rows)):
                mine = {parameter: block.parameters[parameter] for parameter, _ in block.model.found.keys_at[site]}
                rounded[site] = block.int8.inputs(site, rows, mine)
        stand_in = last[site][-1]
        if site in rounded and other is None:
            bias = block.parameters.get(block.bias_of(use.parameter) or "")
            y = block.int8.product(site, rounded[site], use.parameter, bias).reshape(*x.shape[:-1], -1)
        else:
            y = compute(x if stand_in is None else stand_in.reshape(x.shape), other)
        if use.parameter not in makers:
            return y
        replaced = on_site(makers[use.parameter], y.reshape(-1, y.shape[-1]))
        return y if replaced is None else replaced.reshape(y.shape)

    return on_use


def _is_int8(block: "HFBlock", site: str, rows: int) -> bool:
    """Whether the products of what is observed at a site are made in int8."""
    if block.exact or not block.observing or rows < int8.FEWEST or not int8.fast(block.model.device):
        return False
    linear = all(block.is_linear(parameter) for parameter, _ in block.model.found.keys_at[site])
    return linear and all(int8.enough(block.layers[name].scheme) for name in block.sites[site].layers)


def _stand_in(block: "HFBlock", use: Use, weights: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
    """The matrix of a product with the given weights in it; None when none of them is."""
    places = [p for p in block.model.naming.by_parameter[use.parameter] if p.expert == use.expert]
    if not any(layer_name(place) in weights for place in places):
        return None
    pieces = [
        place.of_source(weights[name]) if (name := layer_name(place)) in weights else block.piece(place)
        for place in sorted(places, key=lambda place: place.start)
    ]
    return torch.cat(pieces) if len(pieces) > 1 else pieces[0]


def cache_listener(block: "HFBlock", on_site: OnSite) -> OnCache | None:
    """Call ``on_site`` for the keys and values of every attention module."""
    sites = {index: info.sites[-2:] for index, info in block.model.cache_at.items() if info.block == block.index}
    if not sites:
        return None

    def answer(x: torch.Tensor, site: Site) -> torch.Tensor:
        by_token = x.transpose(1, 2)
        replaced = on_site(site.name, by_token.reshape(-1, site.features))
        return x if replaced is None else replaced.reshape(by_token.shape).transpose(1, 2)

    def on_cache(key: torch.Tensor, value: torch.Tensor, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        if index not in sites:
            return key, value
        return answer(key, sites[index][0]), answer(value, sites[index][1])

    return on_cache
