"""Writing shards and files so that a killed process or a full disk leaves nothing half-written."""

import errno
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from gs_core.arrays import PACKED_INT4, Array, RawTensor, safetensors_name, to_raw
from gs_core.errors import OutputError
from gs_core.storage.tensors import DerivedTensor, StoredTensor

Tensor = RawTensor | StoredTensor | DerivedTensor | Array


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path that becomes ``path``, on disk, when the block ends well, and vanishes otherwise.

    Raises ``OutputError`` when the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(path.name + ".partial")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise _output_error(path, error) from None
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _output_error(path: Path, error: OSError) -> OutputError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(path.parent).free
        return OutputError(
            f"the disk is full: could not write {path} ({free / 2**20:.1f} MiB free). "
            "Make room and run the same command again; finished blocks are kept"
        )
    return OutputError(f"could not write {path}: {error.strerror or error}")


def sync_folder(folder: Path) -> None:
    """Make renames in ``folder`` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_safetensors(path: Path, tensors: Iterable[tuple[str, Tensor]], framework: str = "pt") -> dict[str, int]:
    """Write one file, in the given order, durably; returns ``{name: nbytes}``.

    What comes from another file streams through in pieces; nothing is held twice. framework: the ``format`` of the
    metadata, whose readers the file is for (``pt``, ``ms``).
    """
    items = [(n, t if isinstance(t, RawTensor | StoredTensor | DerivedTensor) else to_raw(t)) for n, t in tensors]
    packed = {name: "Int4" for name, tensor in items if tensor.dtype == PACKED_INT4}
    header: dict[str, object] = {"__metadata__": {"format": framework} | packed}
    offset = 0
    for name, tensor in items:
        header[name] = {
            "dtype": safetensors_name(tensor.dtype),
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for _, tensor in items:
            if isinstance(tensor, RawTensor):
                file.write(tensor.data.data)
            else:
                for piece in tensor.chunks():
                    file.write(piece)
    return {name: tensor.nbytes for name, tensor in items}


def write_text(path: Path, text: str) -> None:
    """Write a small file durably."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def copy_file(source: Path, target: Path) -> None:
    with replacing(target) as temporary:
        shutil.copyfile(source, temporary)
