"""What attention caches: keys and values on their way into a ``PagedAttentionMgr``.

For our runs nothing is written into a network's caches, which are its user's. ``InferAttention`` goes on with what a
listener answers, as it would with what it read back; another cell around a cache computes with what it made itself.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import mindspore as ms
import numpy as np

from gs_core import CacheInfo, Site
from gs_mindformers.found import Key, Layers
from gs_mindformers.linear import is_a
from gs_mindformers.rotary import ROTATION, rotate
from gs_mindformers.standins import Swap
from gs_mindformers.structure import Structure

ATTENTION = "mindformers.modules.infer_attention.InferAttention"
ROTATED = "a PagedAttentionMgr is handed keys after their rotation"

OnCache = Callable[[str, ms.Tensor, ms.Tensor], tuple[ms.Tensor, ms.Tensor]]
"""``(path of the cache, key, value)`` to what attention computes with; ``(batch, length, heads * size)``."""


def nobody(path: str, key: ms.Tensor, value: ms.Tensor) -> tuple[ms.Tensor, ms.Tensor]:
    return key, value


def listening(structure: Structure, on_cache: OnCache = nobody) -> list[Swap]:
    """What makes every cache call ``on_cache`` instead of being written, and lets attention run on any device."""
    cached: dict[str, tuple[ms.Tensor, ms.Tensor]] = {}
    swaps: list[Swap] = [
        (cell.__dict__, "construct", partial(_store, path, on_cache, cached)) for path, cell in structure.caches.items()
    ]
    if not swaps:
        return []
    if hasattr(structure.network, "pre_gather_func"):  # which leaves the last token's logits of each sample alone
        swaps.append((structure.network.__dict__, "pre_gather_func", _ungathered))
    for path, cell in structure.network.cells_and_names():
        if is_a(cell, ATTENTION):
            cache = f"{path}.paged_attention_mgr".lstrip(".")
            prefill = cell._prefill_attention
            swaps.append((cell.__dict__, "_prefill_attention", partial(_recall, cache, cached, prefill)))
        elif is_a(cell, ROTATION) and ms.get_context("device_target") != "Ascend":
            swaps.append((cell.__dict__, "construct", rotate))
    return swaps


def _ungathered(gather: bool, output: ms.Tensor, *_: Any, **__: Any) -> ms.Tensor:
    return output


def _store(path: str, on_cache: OnCache, cached: dict, key: ms.Tensor, value: ms.Tensor, *_: Any, **__: Any) -> Any:
    cached[path] = on_cache(path, key, value)
    return key


def _recall(path: str, cached: dict, prefill: Any, query: Any, key: Any, value: Any, *more: Any, **named: Any) -> Any:
    key, value = cached.pop(path, (key, value))
    return prefill(query, key, value, *more, **named)


def arguments(network: ms.nn.Cell, tokens: np.ndarray) -> dict[str, ms.Tensor]:
    """What a network that was built to generate (``use_past``) is called with beside the tokens."""
    config = getattr(network, "config", None)
    if not getattr(config, "use_past", False):
        return {}
    samples, length = tokens.shape
    blocks = -(-length // int(getattr(config, "block_size", 16)))
    return {
        "batch_valid_length": ms.Tensor(np.full(samples, length, np.int32)),
        "block_tables": ms.Tensor(np.arange(samples * blocks, dtype=np.int32).reshape(samples, blocks)),
        "slot_mapping": ms.Tensor(np.arange(samples * length, dtype=np.int32)),
    }


def add_caches(found: Layers, structure: Structure, seen: list[tuple[str, list[Key]]]) -> list[CacheInfo]:
    """The sites of every cache, among those of its block in the order of execution. ``seen``: the caches by path, and
    the products that came before."""
    infos = []
    for path, used in seen:
        cell, block = structure.caches[path], structure.index(path)
        if block is None:
            continue
        name = cell.key_cache.name.removesuffix(".key_cache")
        dtype = next(info.dtype for info in found.infos if info.block == block)
        heads = int(cell.n_kv_heads)
        key, value = (
            Site(f"{name}.{kind}", heads * int(cell.head_dim), (), kind, heads, dtype) for kind in ("key", "value")
        )
        sites = list(found.sites[block].values())
        before = {found.site_of.get(product) for product in used}
        at = max((n + 1 for n, site in enumerate(sites) if site.name in before or not site.layers), default=0)
        found.sites[block] = {site.name: site for site in [*sites[:at], key, value, *sites[at:]]}
        found.cache_sites[path] = (key, value)
        infos.append(CacheInfo(name, block, (key, value), ROTATED, path if path != name else ""))
    return infos
