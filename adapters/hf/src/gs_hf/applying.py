"""Applying a transform: into the producer's parameters, or online, and out of the consumers'."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch

from gs_core import ChannelScale, FoldTransform
from gs_core.arrays import astype
from gs_core.interfaces import Transform
from gs_core.numerics import slices

if TYPE_CHECKING:
    from gs_hf.block import HFBlock

Keep = Callable[[str], torch.Tensor]
"""Gives a parameter to be changed in place, having put a copy aside."""
Change = Callable[[torch.Tensor], torch.Tensor]


def apply(block: "HFBlock", transform: Transform) -> tuple[Transform, Callable[[], None]]:
    """See ``gs_core.Block.apply``.

    A norm's weight is rounded to the dtype it is stored in first, and the scale that this leaves is the one the
    consumers get, so that nothing is lost when the norm is written.
    """
    behind = [site for site in transform.sites if site in block.online]
    if behind:
        raise ValueError(f"{behind[0]} has a map that is computed at run time; what folds there must come before it")
    kept: dict[str, torch.Tensor] = {}

    def keep(name: str) -> torch.Tensor:
        value = block.parameters[name]
        kept.setdefault(name, value.clone())
        return value

    changed, online = set(block.changed), block.online

    def undo() -> None:
        for name, value in kept.items():
            block.parameters[name].copy_(value)
        block.changed.clear()
        block.changed.update(changed)
        block.online = online

    try:
        transform = _apply(block, transform, keep)
    except ValueError:
        undo()
        raise
    block.changed |= set(kept)
    return transform, undo


def _apply(block: "HFBlock", transform: Transform, keep: Keep) -> Transform:
    if isinstance(transform, ChannelScale):
        scale = transform.scale.to(block.model.device, torch.float32)
        shift = None if transform.shift is None else transform.shift.to(block.model.device, torch.float32)
        if transform.fold.producer in block.norm_offsets:
            scale, shift = _scale_norm(block, transform.fold.producer, scale, shift, keep)
        else:
            _scale_layer(block, transform.fold.producer, scale, shift, keep)
        transform = ChannelScale(transform.fold, scale, shift)
        if shift is not None:
            _make_up_for(block, transform.sites, transform.fold.expand(shift), keep)
        expanded = transform.fold.expand(scale)
        feed(block, transform.sites, lambda weight: weight * expanded, keep)
    elif isinstance(transform, FoldTransform):
        fold, map = transform.fold, transform.map
        if fold.producer in block.norm_offsets or fold.head % map.block:
            raise ValueError(f"{fold.producer}: mixes channels in groups of {fold.head}, not of {map.block}")
        weight, bias = outputs(block, fold.producer, keep)
        weight.copy_(map.apply(weight.T).T)
        if bias is not None:
            bias.copy_(map.apply(bias))
        feed(block, transform.sites, map.inverse_transpose.apply, keep)
    else:
        why = transform.objection(block.sites[transform.site])
        if why:
            raise ValueError(f"{transform.site}: {why}")
        if block.sites[transform.site].kind == "input":
            _check_alone(block, transform.site)
            feed(block, transform.sites, transform.map.inverse_transpose.apply, keep)
        block.online = {**block.online, transform.site: transform.map}
    return transform


def _check_alone(block: "HFBlock", site: str) -> None:
    """An engine sends the input of layers through a map, not that of other modules which share it."""
    layers = block.sites[site].layers
    mine = {place.parameter for layer in layers for place in block.model.found.places[layer]}
    others = [parameter for parameter, _ in block.model.found.keys_at[site] if parameter not in mine]
    if others:
        raise ValueError(f"{others[0]} shares the input and is no layer to be quantized")


def feed(block: "HFBlock", sites: Iterable[str], change: Change, keep: Keep) -> None:
    """Change the input features of every weight at these sites, a slice of rows at a time."""
    for site in sites:
        for parameter, expert in block.model.found.keys_at[site]:
            value = keep(parameter)
            part = value if expert is None else value[expert]
            part = part.T if parameter in block.model.found.transposed else part
            for rows, _ in slices(part):
                part[rows].copy_(change(part[rows]))


def _make_up_for(block: "HFBlock", sites: Iterable[str], shift: torch.Tensor, keep: Keep) -> None:
    """Add to the biases at these sites what their weights made of ``shift`` ``(features,)``."""
    for site in sites:
        for parameter, expert in block.model.found.keys_at[site]:
            bias, weight = block.bias_of(parameter, expert), block.parameters[parameter]
            assert bias is not None, "the fold said so"
            keep(bias).add_((weight.T if parameter in block.model.found.transposed else weight) @ shift)


def outputs(block: "HFBlock", layer: str, keep: Keep) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The rows of a layer's weight and of its bias, where it has one, to be changed in place."""
    (place,) = block.model.found.places[layer]
    weight = place.of(keep(place.parameter))
    bias = block.bias_of(place.parameter, place.expert)
    if bias is None:
        return weight, None
    part = keep(bias)
    return weight, part if place.rows is None else part[place.start : place.start + len(weight)]


def _scale_norm(
    block: "HFBlock", norm: str, scale: torch.Tensor, shift: torch.Tensor | None, keep: Keep
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The scale and shift that are left once the norm is rounded to the dtype it is stored in."""
    offset, weight = block.norm_offsets[norm], keep(f"{norm}.weight")
    wanted = (weight + offset) / scale
    stored = _rounded(block, f"{norm}.weight", wanted - offset)
    usable = (stored + offset != 0) & (weight + offset != 0)
    effective = torch.where(usable, (weight + offset) / torch.where(usable, stored + offset, 1.0), scale)
    weight.copy_(torch.where(usable, stored, wanted - offset))
    if f"{norm}.bias" in block.parameters:
        bias = keep(f"{norm}.bias")
        if shift is None:
            bias.div_(effective)
        else:
            stored = _rounded(block, f"{norm}.bias", (bias - shift) / effective)
            shift = bias - stored * effective
            bias.copy_(stored)
    return effective, shift


def _rounded(block: "HFBlock", parameter: str, value: torch.Tensor) -> torch.Tensor:
    return astype(astype(value, block.stored_dtype(parameter)), "float32")


def _scale_layer(block: "HFBlock", layer: str, scale: torch.Tensor, shift: torch.Tensor | None, keep: Keep) -> None:
    weight, bias = outputs(block, layer, keep)
    weight.div_(scale[:, None])
    if bias is not None:
        bias.sub_(0 if shift is None else shift).div_(scale)
