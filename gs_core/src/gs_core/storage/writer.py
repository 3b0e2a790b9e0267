"""Writing shards and files so that a killed process or a full disk leaves nothing half-written."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from gs_core.arrays import PACKED_INT4, Array, RawTensor, safetensors_name, to_raw
from gs_core.errors import OutputError
from gs_core.storage.tensors import DerivedTensor, StoredTensor

Tensor = RawTensor | StoredTensor | DerivedTensor | Array


WORK = ".gsq"
"""Folder inside the output folder of an unfinished run: the journal, saved activations and temporary files."""
BEGUN = "begun.jsonl"
"""File in ``WORK``. Each line is the name of a file of the output folder, recorded before the file gets that name."""


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file. When the block ends without an error, it is renamed to ``path``, durably; otherwise it is removed.

    The file is created with ``O_EXCL``: an existing file or symlink is never written through. In the output folder of
    an unfinished run, the temporary file is in ``WORK``, and ``path`` must be absent or written by the same run.

    Raises ``OutputError`` when the disk is full, the folder cannot be written, or the name is taken.
    """
    work = path.parent / WORK
    in_run = work.is_dir() and not work.is_symlink()
    temporary = (work if in_run else path.parent) / f"{path.name}.partial"
    try:
        if in_run:
            _claim(path)
        with _created(temporary) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        raise _output_error(path, error) from None


@contextmanager
def _created(temporary: Path) -> Iterator[BinaryIO]:
    """A new file that is removed if the block raises."""
    try:
        file = open(temporary, "xb")  # noqa: SIM115  # closed below
    except FileExistsError:
        raise OutputError(f"{temporary} exists, left by a killed process or by another program; remove it") from None
    try:
        with file:
            yield file
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _claim(path: Path) -> None:
    """Record that the run of this output folder writes ``path``. Raises ``OutputError`` if another program wrote it."""
    if os.path.lexists(path) and path.name not in begun(path.parent):
        raise OutputError(
            f"{path} exists, and this run did not write it. Move it away and run the same command again; "
            "finished blocks are kept"
        )
    record_begun(path)


def record_begun(path: Path) -> None:
    """Record, durably, that ``path`` belongs to the run of its folder."""
    if path.name in begun(path.parent):
        return
    handle = os.open(path.parent / WORK / BEGUN, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        os.write(
            handle, f"\n{json.dumps(path.name)}\n".encode()
        )  # the leading newline ends a line that a kill cut short
        os.fsync(handle)
    finally:
        os.close(handle)


def begun(out: Path) -> set[str]:
    """Names of the files that the unfinished run in ``out`` wrote or began to write. Damaged lines are skipped."""
    record = out / WORK / BEGUN
    if not is_plain_file(record):
        return set()
    names = set()
    for line in record.read_bytes().splitlines():
        try:
            name = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if is_plain_name(name):
            names.add(name)
    return names


def is_plain_name(name: object) -> bool:
    """True for the name of a file directly inside a folder: no separator, no ``.`` or ``..``."""
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & {"/", os.sep, "\0"}


def is_plain_file(path: Path) -> bool:
    """True for a regular file. False for a symlink, whatever it points to."""
    return path.is_file() and not path.is_symlink()


def file_digest(path: Path) -> str:
    """The sha256 of a file, read in small pieces: 64 hexadecimal digits. Raises ``OSError``, also for a symlink."""
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
    with replacing(path) as file:
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
    with replacing(path) as file:
        file.write(text.encode())


def write_json(path: Path, value: object) -> None:
    """Write a JSON file durably. Raises ``ValueError`` for NaN and infinity, which JSON does not have."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def copy_file(source: Path, target: Path) -> None:
    """Copy the content of a file, durably."""
    with replacing(target) as file, open(source, "rb") as content:
        shutil.copyfileobj(content, file)
