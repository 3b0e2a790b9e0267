"""What was learned, in files of its own: ``flat_matrices-00003.safetensors`` of block 3, to be used again."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from gs_core import (
    Block,
    ChannelScale,
    CheckpointError,
    Fold,
    FoldTransform,
    Layer,
    LinearMap,
    Site,
    SiteTransform,
    numerics,
)
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
    """Raises ``CheckpointError``, which names the file and the tensor, for what is missing, damaged, or of another
    model."""
    path = _path(folder, block)
    if not path.is_file():
        raise CheckpointError(f"{path}: no matrices of {block.name}; save_matrices writes them")
    file = _File(path, block.name)
    folds = {fold.producer: fold for fold in block.folds()}.values()
    scales = [ChannelScale(fold, scale) for fold in folds if (scale := file.scale(fold)) is not None]
    values = [FoldTransform(fold, map) for fold in folds if (map := file.values(fold)) is not None]
    online = [SiteTransform(name, map) for name, site in block.sites.items() if (map := file.pair(site)) is not None]
    clips = {layer.name: clip for layer in block.layers.values() if (clip := file.clip(layer)) is not None}
    file.finish()
    return [*scales, *values, *online], clips


class _File:
    """The tensors of a file, each taken out and checked against what the block needs there; None for what is not in
    it. What nobody takes is of another model."""

    def __init__(self, path: Path, block: str):
        self._path, self._block, self._left = path, block, read_header(path)

    def scale(self, fold: Fold) -> torch.Tensor | None:
        scale = self._take(name := f"{fold.producer}.scale", (fold.channels,))
        if scale is not None and not scale.all():
            raise self._wrong(name, "holds a zero, and scales are divided by")
        return scale

    def values(self, fold: Fold) -> LinearMap | None:
        matrix = self._matrix(f"{fold.producer}.values", (fold.head, fold.head))
        return None if matrix is None else LinearMap((matrix,))

    def pair(self, site: Site) -> LinearMap | None:
        left, right = self._matrix(f"{site.name}.left"), self._factor(f"{site.name}.right")
        keep = self._take(name := f"{site.name}.keep", (1,))
        if left is None and right is None and keep is None:
            return None
        if left is None or right is None:
            raise self._wrong(f"{site.name}.{'left' if left is None else 'right'}", "is missing")
        if keep is not None and not 0 < keep <= 1:
            raise self._wrong(name, f"is {float(keep)}; expected a part of a range, above 0 and no more than 1")
        map = LinearMap((left, right), keep=1.0 if keep is None else float(keep))
        if why := map.objection(site.features):
            raise self._wrong(f"{site.name}.left", f"is of another model: {why}")
        return map

    def clip(self, layer: Layer) -> torch.Tensor | None:
        shape = None
        if layer.scheme.weights is not None:  # else nothing needs it: the layer stays in floating point this time
            shape = (2, *numerics.split(torch.empty(layer.shape, device="meta"), layer.args).shape[:2])
        return self._take(f"{layer.name}.clip", shape)

    def finish(self) -> None:
        for name in self._left:
            raise self._wrong(name, f"is of another model: nothing in {self._block} takes it")

    def _factor(self, name: str) -> torch.Tensor | int | None:
        if name not in self._left or self._left[name].shape != (1,):
            return self._matrix(name)
        size = self._take(name)
        if size is None or size < 1 or size != size.round():
            raise self._wrong(name, "is no whole number, the size of an identity")
        return int(size)

    def _matrix(self, name: str, shape: tuple[int, int] | None = None) -> torch.Tensor | None:
        matrix = self._take(name, shape)
        if matrix is None:
            return None
        if matrix.ndim != 2 or len(set(matrix.shape)) != 1 or not len(matrix):
            raise self._wrong(name, f"has shape {tuple(matrix.shape)}; expected a square matrix")
        if torch.linalg.inv_ex(matrix.double()).info:
            raise self._wrong(name, "has no inverse")
        return matrix

    def _take(self, name: str, shape: tuple[int, ...] | None = None) -> torch.Tensor | None:
        stored = self._left.pop(name, None)
        if stored is None:
            return None
        if stored.dtype != "float32":
            raise self._wrong(name, f"is {stored.dtype}; expected float32")
        if shape is not None and stored.shape != shape:
            raise self._wrong(name, f"has shape {stored.shape}; expected {shape}")
        tensor = torch.from_numpy(from_raw(stored.read()))
        if not tensor.isfinite().all():
            raise self._wrong(name, "holds NaN or infinity")
        return tensor

    def _wrong(self, name: str, why: str) -> CheckpointError:
        return CheckpointError(f"{self._path}: '{name}' {why}; learn the block's matrices again, with save_matrices")
