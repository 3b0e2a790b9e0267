"""Applying a channel scale: into the producer's parameters, and out of the consumers'."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from gs_core import ChannelScale
from gs_core.arrays import astype

if TYPE_CHECKING:
    from gs_hf.block import HFBlock


def fold(block: "HFBlock", transform: ChannelScale) -> tuple[ChannelScale, Callable[[], None]]:
    """Divide the producer's output channels, multiply the consumers' input features; see ``gs_core.Block.apply``.

    A norm's weight is rounded to the dtype it is stored in first, and the scale that this leaves is the one the
    consumers get, so that nothing is lost when the norm is written.
    """
    scale = transform.scale.to(block.model.device, torch.float32)
    kept: dict[str, torch.Tensor] = {}

    def keep(name: str) -> torch.Tensor:
        value = block.parameters[name]
        kept.setdefault(name, value.clone())
        return value

    before = set(block.changed)
    if transform.fold.producer in block.norm_offsets:
        scale = _fold_norm(block, transform.fold.producer, scale, keep)
    else:
        _fold_layer(block, transform.fold.producer, scale, keep)
    effective = ChannelScale(transform.fold, scale)
    expanded = effective.fold.expand(scale)
    for site in transform.fold.sites:
        for parameter, expert in block.model.found.keys_at[site]:
            value = keep(parameter)
            part = value if expert is None else value[expert]
            part.mul_(expanded[:, None] if parameter in block.model.found.transposed else expanded)
    block.changed |= set(kept)

    def undo() -> None:
        for name, value in kept.items():
            block.parameters[name].copy_(value)
        block.changed.clear()
        block.changed.update(before)

    return effective, undo


def _fold_norm(block: "HFBlock", norm: str, scale: torch.Tensor, keep: Callable[[str], torch.Tensor]) -> torch.Tensor:
    offset, weight = block.norm_offsets[norm], keep(f"{norm}.weight")
    wanted = (weight + offset) / scale
    stored = astype(astype(wanted - offset, block.stored_dtype(f"{norm}.weight")), "float32")
    usable = (stored + offset != 0) & (weight + offset != 0)
    effective = torch.where(usable, (weight + offset) / torch.where(usable, stored + offset, 1.0), scale)
    weight.copy_(torch.where(usable, stored, wanted - offset))
    if f"{norm}.bias" in block.parameters:
        keep(f"{norm}.bias").div_(effective)
    return effective


def _fold_layer(block: "HFBlock", layer: str, scale: torch.Tensor, keep: Callable[[str], torch.Tensor]) -> None:
    (place,) = block.model.found.places[layer]
    place.of(keep(place.parameter)).div_(scale[:, None])
    bias = place.parameter.removesuffix("weight") + "bias"
    if place.expert is None and place.parameter.endswith(".weight") and bias in block.parameters:
        part = keep(bias)
        (part if place.rows is None else part[place.start : place.start + len(scale)]).div_(scale)
