"""Applying a transform: into the producer's parameters, or online, and out of the consumers'."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np

from gs_core import ChannelScale, FoldTransform
from gs_core.arrays import astype
from gs_core.interfaces import Transform
from gs_core.numerics import slices

if TYPE_CHECKING:
    from gs_mindformers.block import MFBlock

Keep = Callable[[str], np.ndarray]
"""Gives a parameter's value to be written into, having put a copy aside."""
Change = Callable[[np.ndarray], np.ndarray]


class Kept:
    """Copies of values that are written into."""

    def __init__(self, block: "MFBlock"):
        self._block = block
        self.values: dict[str, np.ndarray] = {}

    def __call__(self, parameter: str) -> np.ndarray:
        self.values.setdefault(parameter, self._block.values[parameter].copy())
        return self._block.write(parameter)

    def restore(self) -> None:
        for parameter, value in self.values.items():
            self._block.write(parameter)[...] = value


def apply(block: "MFBlock", transform: Transform) -> tuple[Transform, Callable[[], None]]:
    """See ``gs_core.Block.apply``.

    A norm's gain is rounded to the dtype it is stored in first, and the scale that this leaves is the one the
    consumers get, so that nothing is lost when the norm is written.
    """
    behind = [site for site in transform.sites if site in block.online]
    if behind:
        raise ValueError(f"{behind[0]} has a map that is computed at run time; what folds there must come before it")
    kept, changed, online = Kept(block), set(block.changed), block.online

    def undo() -> None:
        kept.restore()
        block.changed.clear()
        block.changed.update(changed)
        block.online = online

    try:
        transform = _apply(block, transform, kept)
    except ValueError:
        undo()
        raise
    block.changed |= set(kept.values)
    return transform, undo


def _apply(block: "MFBlock", transform: Transform, keep: Keep) -> Transform:
    if isinstance(transform, ChannelScale):
        scale = np.asarray(transform.scale, np.float32)
        if transform.fold.producer in block.gains:
            scale = _scale_norm(block, transform.fold.producer, scale, keep)
        else:
            change_rows(block, transform.fold.producer, lambda rows: rows / scale, keep)
        transform = ChannelScale(transform.fold, scale)
        expanded = transform.fold.expand(scale)
        _feed(block, transform.sites, lambda weight: weight * expanded, keep)
    elif isinstance(transform, FoldTransform):
        fold, map = transform.fold, transform.map
        if fold.producer in block.gains or fold.head % map.block:
            raise ValueError(f"{fold.producer}: mixes channels in groups of {fold.head}, not of {map.block}")
        change_rows(block, fold.producer, map.apply, keep)
        _feed(block, transform.sites, map.inverse_transpose.apply, keep)
    else:
        why = transform.objection(block.sites[transform.site])
        if why:
            raise ValueError(f"{transform.site}: {why}")
        if block.sites[transform.site].kind == "input":
            _check_alone(block, transform.site)
            _feed(block, transform.sites, transform.map.inverse_transpose.apply, keep)
        block.online = {**block.online, transform.site: transform.map}
    return transform


def _check_alone(block: "MFBlock", site: str) -> None:
    """An engine sends the input of layers through a map, not that of other modules which share it."""
    mine = [block.model.found.places[layer] for layer in block.sites[site].layers]
    others = [place.parameter for place in block.model.found.fed[site] if place not in mine]
    if others:
        raise ValueError(f"{others[0]} shares the input and is no layer to be quantized")


def _feed(block: "MFBlock", sites: Iterable[str], change: Change, keep: Keep) -> None:
    """Change the input features of every weight at these sites, a slice of rows at a time."""
    for site in sites:
        for place in block.model.found.fed[site]:
            part = place.of(keep(place.parameter))
            for rows, _ in slices(part):
                part[rows] = change(part[rows])


def change_rows(block: "MFBlock", layer: str, change: Change, keep: Keep) -> None:
    """Change a layer's output channels: the columns that ``change`` gets are those of the transposed weight."""
    place = block.model.found.places[layer]
    weight = place.of(keep(place.parameter))
    weight[...] = change(weight.T).T
    bias = sibling(block, place.parameter, ("bias",))
    if bias is not None:
        part = keep(bias) if place.expert is None else keep(bias).reshape(-1, len(weight))[place.expert]
        part[...] = change(part)


def _scale_norm(block: "MFBlock", norm: str, scale: np.ndarray, keep: Keep) -> np.ndarray:
    parameter, offset = block.gains[norm]
    gain = keep(parameter)
    wanted = (gain + offset) / scale
    stored = astype(astype(wanted - offset, block.model.weights.at(parameter, None).tensor.dtype), "float32")
    usable = (stored + offset != 0) & (gain + offset != 0)
    effective = np.where(usable, (gain + offset) / np.where(usable, stored + offset, np.float32(1)), scale)
    gain[...] = np.where(usable, stored, wanted - offset)
    bias = sibling(block, parameter, ("bias", "beta"))
    if bias is not None:
        keep(bias)[...] /= effective
    return effective


def sibling(block: "MFBlock", parameter: str, leaves: tuple[str, ...]) -> str | None:
    """The parameter beside another one that has one of these names."""
    found = [name for leaf in leaves if (name := f"{parameter.rpartition('.')[0]}.{leaf}") in block.values]
    return found[0] if found else None
