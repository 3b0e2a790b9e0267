"""Reading checkpoints one tensor at a time, trusting nothing that a file says.

Our own reader because memory is the point: a tensor is read (never mapped) into a buffer that dies with it, so
the resident size does not grow with the checkpoint; and every offset is checked before a byte is believed.
Format: https://github.com/huggingface/safetensors (8-byte little-endian header length, JSON header, data).
"""

import copy
import json
import math
import os
from collections.abc import Collection, Mapping
from dataclasses import replace
from io import BufferedReader
from itertools import pairwise
from pathlib import Path
from typing import Any

from gs_core.arrays import PACKED_INT4, SAFETENSORS_DTYPES
from gs_core.errors import CheckpointError
from gs_core.storage.ckpt import read_ckpt
from gs_core.storage.regular import open_regular
from gs_core.storage.tensors import DerivedTensor, StoredTensor

HEADER_LIMIT = 100_000_000
MAX_DIMENSIONS, MAX_NAME_BYTES = 64, 255
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


def read_header(path: Path) -> dict[str, StoredTensor]:
    """The tensors of one file, ``.safetensors`` or ``.ckpt``, in file order. Raises ``CheckpointError`` for a damaged
    one."""
    return read_ckpt(path) if path.suffix == ".ckpt" else _read_safetensors(path)


def _read_safetensors(path: Path) -> dict[str, StoredTensor]:
    try:
        with BufferedReader(open_regular(path)) as file:
            size = os.fstat(file.fileno()).st_size
            prefix = file.read(8)
            length = int.from_bytes(prefix, "little")
            if len(prefix) < 8 or length > min(HEADER_LIMIT, size - 8):
                raise CheckpointError(f"{path}: not a safetensors file, or cut short ({size} bytes)")
            header = json.loads(file.read(length))
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from None
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path}: the header is not JSON; the file is damaged") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: the header is not a JSON object; the file is damaged")
    metadata = header.pop("__metadata__", None)
    tensors = [_entry(path, 8 + length, size, name, value) for name, value in header.items()]
    if isinstance(metadata, dict):  # MindSpore's, which names its packed tensors there
        tensors = [replace(t, dtype=PACKED_INT4) if metadata.get(t.name) == "Int4" else t for t in tensors]
    tensors.sort(key=lambda t: (t.offset, t.nbytes))
    for before, after in pairwise(tensors):
        if before.offset + before.nbytes > after.offset:
            raise CheckpointError(f"{path}: '{before.name}' and '{after.name}' overlap; the file is damaged")
    return {t.name: t for t in tensors}


def _entry(path: Path, base: int, size: int, name: str, value: Any) -> StoredTensor:
    try:
        dtype, itemsize = SAFETENSORS_DTYPES[value["dtype"]]
        shape = tuple(value["shape"])
        begin, end = value["data_offsets"]
        whole = all(type(n) is int and 0 <= n < 2**63 for n in (*shape, begin, end))
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(f"{path}: cannot understand the entry of '{name:.200}'; the file is damaged") from None
    if len(shape) > MAX_DIMENSIONS:
        raise CheckpointError(f"{path}: '{name:.200}' has {len(shape)} dimensions; the file is damaged")
    if not whole:
        raise CheckpointError(f"{path}: '{name:.200}' has sizes or offsets that are no whole numbers of 64 bits")
    if end - begin != math.prod(shape) * itemsize:
        raise CheckpointError(f"{path}: '{name}' says shape {shape} {dtype} but holds {end - begin} bytes")
    if base + end > size:
        raise CheckpointError(
            f"{path}: cut short: '{name}' ends at byte {base + end}, the file has {size}. Copy it again"
        )
    return StoredTensor(name, dtype, shape, path, base + begin, end - begin)


class Checkpoint:
    """The tensors of a checkpoint folder by name, over however many shards. Reads headers only."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.files = _shards(self.folder)
        self.tensors: dict[str, StoredTensor | DerivedTensor] = {}
        for file in self.files:
            for name, tensor in read_header(file).items():
                if name in self.tensors:
                    raise CheckpointError(f"{file}: '{name}' is in another shard too")
                self.tensors[name] = tensor
        _check_index(self.folder, self.tensors)

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def replacing(self, removed: Collection[str], added: Mapping[str, DerivedTensor]) -> "Checkpoint":
        """The same checkpoint with some tensors left out and others computed."""
        view = copy.copy(self)
        view.tensors = {n: t for n, t in self.tensors.items() if n not in removed} | dict(added)
        return view

    def __getitem__(self, name: str) -> StoredTensor | DerivedTensor:
        try:
            return self.tensors[name]
        except KeyError:
            raise CheckpointError(f"{self.folder}: no tensor named '{name}' in the checkpoint") from None

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in self.tensors.values())


def _shards(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder")
    if (folder / INDEX).is_file():
        files = sorted(set(_weight_map(folder).values()))
        missing = [name for name in files if not (folder / name).exists() or (folder / name).is_dir()]
        if missing:
            raise CheckpointError(f"{folder}: {INDEX} names {missing[0]}, which is not there")
        return [folder / name for name in files]
    if (folder / SINGLE).exists():
        return [folder / SINGLE]
    for kind in ("*.safetensors", "*.ckpt"):
        if files := sorted(p.name for p in folder.glob(kind)):
            return [folder / name for name in files]
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth"))
    hint = f"; {pickles[0]} is a pickle, which is never loaded: save the model as safetensors" if pickles else ""
    raise CheckpointError(f"{folder}: no *.safetensors or *.ckpt file{hint}")


def _weight_map(folder: Path) -> dict[str, str]:
    path = folder / INDEX
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        pairs = {str(k): v for k, v in weight_map.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CheckpointError(f"{path}: not an index of shards (no readable 'weight_map')") from None
    for name, file in pairs.items():
        # A shard is a plain file name. Anything else could read from, or later write to, somewhere else.
        if not isinstance(file, str) or file != os.path.basename(file) or file in ("", ".", ".."):
            raise CheckpointError(f"{path}: '{name:.200}' points outside the folder: {file!r:.200}")
        if len(file.encode(errors="replace")) > MAX_NAME_BYTES:
            raise CheckpointError(f"{path}: '{name:.200}' is in a file whose name has more than {MAX_NAME_BYTES} bytes")
    return pairs


def _check_index(folder: Path, tensors: Collection[str]) -> None:
    if (folder / INDEX).is_file():
        missing = [name for name in _weight_map(folder) if name not in tensors]
        if missing:
            raise CheckpointError(f"{folder}: {INDEX} names '{missing[0]}', which no shard holds")
