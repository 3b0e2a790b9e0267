"""What was learned, in files of its own: ``flat_matrices-00003.safetensors`` of block 3, to be used again."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from gs_core import Block, ChannelScale, CheckpointError, Fold, FoldTransform, LinearMap, SiteTransform
from gs_core.arrays import from_raw
from gs_core.interfaces import Transform
from gs_core.storage import read_header, write_safetensors

Learnt = tuple[list[Transform], dict[str, torch.Tensor]]
"""Transforms in the order to apply them, and of each layer how much of its range is kept, as logits."""


def _path(folder: Path, block: Block) -> Path:
    return folder / f"flat_matrices-{block.index:05d}.safetensors"


def save(folder: Path, block: Block, transforms: Sequence[Transform], clips: Mapping[str, torch.Tensor]) -> None:
    """Float32 tensors: ``<producer>.scale`` ``(channels,)``, ``<producer>.values``, ``<site>.left``, ``<site>.right``
    (a single number where it is an identity of that size), ``<site>.keep`` ``(1,)`` where that is not the whole
    range of a token, ``<layer>.clip`` ``(2, rows, groups)``."""
    arrays = {f"{layer}.clip": clip for layer, clip in clips.items()}
    for transform in transforms:
        if isinstance(transform, ChannelScale):
            arrays[f"{transform.fold.producer}.scale"] = transform.scale
        elif isinstance(transform, FoldTransform):
            arrays[f"{transform.fold.producer}.values"] = _matrix(transform.map.factors[0])
        else:
            left, right = transform.map.factors
            arrays |= {f"{transform.site}.left": _matrix(left), f"{transform.site}.right": _matrix(right)}
            if transform.map.keep != 1:
                arrays[f"{transform.site}.keep"] = torch.tensor([transform.map.keep])
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(_path(folder, block), arrays.items())


def _matrix(factor: torch.Tensor | int) -> torch.Tensor:
    return torch.tensor([float(factor)]) if isinstance(factor, int) else factor


def load(folder: Path, block: Block) -> Learnt:
    """Raises ``CheckpointError`` for files that are not there, or of another model."""
    path = _path(folder, block)
    if not path.is_file():
        raise CheckpointError(f"{path}: no matrices of {block.name}; save_matrices writes them")
    arrays = {name: torch.from_numpy(from_raw(tensor.read())) for name, tensor in read_header(path).items()}
    folds: dict[str, Fold] = {fold.producer: fold for fold in block.folds()}
    clips = {name.removesuffix(".clip"): array for name, array in arrays.items() if name.endswith(".clip")}
    folded: list[Transform] = []
    online: list[Transform] = []
    for name, array in arrays.items():
        owner, _, what = name.rpartition(".")
        known = {"scale": {*folds}, "values": {*folds}, "clip": {*block.layers}}.get(what, {*block.sites})
        if owner not in known:
            raise CheckpointError(f"{path}: '{name}' is of another model; {block.name} has no '{owner}'")
        if what == "scale":
            folded.append(ChannelScale(folds[owner], array))
        elif what == "values":
            folded.append(FoldTransform(folds[owner], LinearMap((array,))))
        elif what == "left":
            right = arrays[f"{owner}.right"]
            factors = (array, int(right) if right.ndim == 1 else right)
            keep = float(arrays.get(f"{owner}.keep", torch.ones(1)))
            online.append(SiteTransform(owner, LinearMap(factors, keep=keep)))
    return folded + online, clips
