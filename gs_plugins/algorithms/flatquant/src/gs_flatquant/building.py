"""What is to be learned of a block, before any learning: which site gets which map, and where each starts."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from gs_core import Block, Fold, Layer
from gs_flatquant.mapped import Mapped, SiteMap, clip_logits, smoothquant_style
from gs_flatquant.matrices import Direct, Learned


def build(
    block: Block,
    layers: Sequence[Layer],
    observed: Mapping[str, torch.Tensor],
    options: Any,
    pair: Callable[[int], tuple[int, int]],
) -> Mapped:
    """observed: the largest magnitude of each channel at each site."""
    generator = torch.Generator().manual_seed(options.seed * 1_000_003 + block.index)
    matrix = Direct if options.direct_inv else Learned
    by_site: dict[str, list[Layer]] = {}
    for layer in layers:
        if layer.site in observed:
            by_site.setdefault(layer.site, []).append(layer)
    folds = block.folds()
    heads = {site: fold for fold in folds if fold.head > 1 for site in fold.sites}
    normed = {site for fold in folds if fold.producer not in block.layers for site in fold.sites}
    sites: dict[str, SiteMap] = {}
    for name in by_site:
        features = block.sites[name].features
        if name in heads:
            if options.use_o_quant:
                sites[name] = _across_heads(features, heads[name], matrix, generator)
        elif name in normed or options.use_down_quant:
            left, right = pair(features)
            sites[name] = SiteMap(matrix(left, generator), matrix(right, generator))
    scales = [
        (fold, _start(fold, by_site, observed, options.diag_alpha))
        for fold in folds
        if options.add_diag and fold.head == 1 and all(site in sites for site in fold.sites)
    ]
    clips = {layer.name: clip_logits(layer) for layer in layers} if options.lwc else {}
    return Mapped(block, layers, sites, scales, clips)


def _across_heads(
    features: int, fold: Fold, matrix: type[Learned] | type[Direct], generator: torch.Generator
) -> SiteMap:
    """One matrix mixes the heads when the model runs, one mixes each head's values and is folded."""
    return SiteMap(
        matrix(features // fold.head, generator), fold.head, matrix(fold.head, generator), producer=fold.producer
    )


def _start(
    fold: Fold, by_site: Mapping[str, list[Layer]], observed: Mapping[str, torch.Tensor], alpha: float
) -> torch.Tensor:
    weights = [layer.weight() for site in fold.sites for layer in by_site[site]]
    largest = fold.reduce_max([w.abs().amax(0) for w in weights])
    return smoothquant_style([largest[None]], fold.reduce_max([observed[site] for site in fold.sites]), alpha)
