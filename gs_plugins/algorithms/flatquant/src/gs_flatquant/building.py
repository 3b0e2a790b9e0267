"""What is to be learned of a block, before any learning: which site gets which map, and where each starts."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from gs_core import Block, Fold, Layer
from gs_core.interfaces import Transform
from gs_flatquant.mapped import Mapped, SiteMap, clip_logits, clip_start, smoothquant_style
from gs_flatquant.matrices import Direct, Learned


def build(
    block: Block,
    layers: Sequence[Layer],
    observed: Mapping[str, torch.Tensor],
    options: Any,
    refusal: Callable[[Transform], str | None],
) -> tuple[Mapped, list[Transform]]:
    """What is to be learned, and of each site that gets no map, since the checkpoint could not say it, that map.

    observed: the largest magnitude of each channel at each site. refusal: why the checkpoint could not say a map.
    """
    # On any device the same numbers.
    generator = torch.Generator().manual_seed(options.seed * 1_000_003 + block.index)
    by_site: dict[str, list[Layer]] = {}
    for layer in layers:
        if layer.site in observed:
            by_site.setdefault(layer.site, []).append(layer)
    folds = block.folds()
    sites: dict[str, SiteMap] = {}
    refused: list[Transform] = []
    for name, fed in by_site.items():
        found = _candidates(block, fed[0], options, generator)
        candidates = [(candidate, candidate.transform(name, fed[0].dtype)) for candidate in found]
        held = [candidate for candidate, transform in candidates if refusal(transform) is None]
        if held:
            sites[name] = held[0]
        else:
            refused += [transform for _, transform in candidates[-1:]]
    scales = [
        (fold, _start(fold, by_site, observed, options.diag_alpha))
        for fold in folds
        if options.add_diag and fold.head == 1 and all(site in sites for site in fold.sites)
    ]
    clips = {layer.name: clip_logits(layer) for layer in layers} if options.lwc else {}
    return Mapped(block, layers, sites, scales, clips), refused


def _candidates(block: Block, layer: Layer, options: Any, generator: torch.Generator) -> Iterator[SiteMap]:
    """The maps that a layer's site may get, the best first. What enters attention's output layer is heads: one matrix
    mixes them when the model runs, one mixes each head's values and is folded."""
    site, features, device = layer.site, layer.shape[1], layer.view().device
    matrix: type[Direct] | type[Learned] = Direct if options.direct_inv else Learned
    inputs = layer.scheme.inputs
    clip = torch.tensor(clip_start(inputs), device=device) if options.lac and inputs is not None else None
    folds = [fold for fold in block.folds() if site in fold.sites]
    normed = any(fold.producer not in block.layers for fold in folds)
    heads = next((fold for fold in folds if fold.head > 1), None)
    if not (options.o_trans if heads else normed or options.down_trans):
        return
    parts = 1 if normed else options.tensor_parallel  # what a norm returns is whole on every device
    if heads and features // heads.head % parts == 0:
        left, right = (matrix(size, generator, device) for size in (features // heads.head // parts, heads.head))
        yield SiteMap(left, heads.head, right, producer=heads.producer, clip=clip)
    left, right = (matrix(size, generator, device) for size in options.pair(features, parts))
    yield SiteMap(left, right, clip=clip)


def _start(
    fold: Fold, by_site: Mapping[str, list[Layer]], observed: Mapping[str, torch.Tensor], alpha: float
) -> torch.Tensor:
    weights = [layer.view() for site in fold.sites for layer in by_site[site]]
    largest = fold.reduce_max([w.abs().amax(0) for w in weights])
    return smoothquant_style([largest[None]], fold.reduce_max([observed[site] for site in fold.sites]), alpha)
