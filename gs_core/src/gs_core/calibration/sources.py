"""Sources of calibration text: files, folders, datasets and lists. A missing source is found before data is read."""

import hashlib
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gs_core.calibration import arrow, files
from gs_core.calibration.rows import Chat, read_row
from gs_core.errors import CalibrationError
from gs_core.hub import datasets_cache, how_to_download, is_hub_id, snapshot

READERS = {
    ".jsonl": files.jsonl,
    ".json": files.json_values,
    ".csv": files.csv_rows,
    ".arrow": arrow.rows,
    ".parquet": arrow.rows,
}
DATA_SUFFIXES = (*READERS, ".txt", ".npy")


def locate(source: Any) -> Any:
    """The existing path of a source that is a path or hub id; other objects unchanged. Reads no data.

    Raises ``CalibrationError`` if the path is empty, missing, a pipe or a device; if the hub id is not in the local
    cache; if the file needs pyarrow and pyarrow is not installed; if the object can be read only once.
    """
    if isinstance(source, str) and not source.strip():
        raise CalibrationError("the path of the text is empty; give a file, a folder or a dataset")
    if isinstance(source, str | Path):
        return _existing(str(source))
    if isinstance(source, Mapping) and "input_ids" not in source:
        raise CalibrationError(
            f"cannot read a {type(source).__name__} of {', '.join(map(str, source))[:200]} as text; "
            "give one of its values, such as dataset['train']"
        )
    if isinstance(source, Iterator):
        raise CalibrationError(f"a {type(source).__name__} can be read only once; give a list")
    return source


def pieces(source: Any, characters: int) -> Iterator[tuple[str, str | Chat]]:
    """Yield the place of each text or chat of a located source, for messages, and the text or chat.

    characters: length of the part of a text file that is read.
    """
    if isinstance(source, Path):
        if source.is_dir():
            yield from _folder(source, characters)
        else:
            yield from _file(source, characters)
    elif isinstance(source, Iterable):
        for number, row in enumerate(source, 1):
            where = f"item {number} of the data"
            yield where, read_row(row, where)
    else:
        raise CalibrationError(
            f"cannot read a {type(source).__name__} as text or token ids; give a path, a list or an array"
        )


def _existing(name: str) -> Path:
    path = Path(name)
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        if not isinstance(error, FileNotFoundError | NotADirectoryError | ValueError):
            raise CalibrationError(f"{path}: {error.strerror or error}") from None
        path, mode = _cached(name), stat.S_IFDIR
    if stat.S_ISDIR(mode):
        if (arrow_files := arrow.dataset_files(path)) is not None:
            arrow.require(arrow_files[0])
    elif not stat.S_ISREG(mode):
        raise CalibrationError(f"{path}: not a file or folder (a pipe or device?); save the data to a file first")
    elif path.suffix.lower() in arrow.DATASET_SUFFIXES:
        arrow.require(path)
    return path


def _cached(name: str) -> Path:
    """The folder of a dataset in the local Hugging Face cache."""
    is_file_name = Path(name).suffix.lower() in DATA_SUFFIXES
    if is_hub_id(name) and not is_file_name:
        found = snapshot("datasets", name)
        if found is not None and _data_files(found):
            return found
        of_library = _in_datasets_cache(name)
        if len(of_library) > 1:
            raise CalibrationError(
                f"{name}: the local cache holds several versions; give the path of one: "
                f"{', '.join(map(str, of_library[:4]))}"
            )
        if of_library:
            return of_library[0]
    hint = "" if is_file_name else how_to_download("datasets", name)
    raise CalibrationError(f"{name}: no such text file or folder{hint}")


def _in_datasets_cache(name: str) -> list[Path]:
    wanted = name.replace("/", "___").replace("_", "").lower()  # the datasets library writes OpenOrca as open_orca
    return sorted(
        info.parent
        for folder in datasets_cache().glob("*")
        if folder.name.replace("_", "").lower() == wanted
        for info in folder.rglob("dataset_info.json")
    )


def _folder(folder: Path, characters: int) -> Iterator[tuple[str, str | Chat]]:
    arrow_files = arrow.dataset_files(folder)
    if arrow_files is not None:
        for file in arrow_files:
            yield from _file(file, characters)
        return
    is_snapshot = folder.parent.name == "snapshots"
    for file in _data_files(folder) if is_snapshot else _shuffled(folder):
        try:
            yield from _file(file, characters)
        except files.NotTextError:
            if file.suffix.lower() in READERS:
                raise


def _data_files(snapshot: Path) -> list[Path]:
    """Data files of a dataset snapshot, without documentation. If paths contain ``train``, only these files."""
    found = [
        file
        for file in _shuffled(snapshot)
        if file.suffix.lower() in (*READERS, ".txt") and not file.name.startswith("dataset_info")
    ]
    return [file for file in found if "train" in file.relative_to(snapshot).as_posix()] or found


def _shuffled(folder: Path) -> list[Path]:
    """All regular files in a pseudorandom order that depends only on their names. A prefix is a fair sample."""
    found = [file for file in folder.rglob("*") if file.is_file()]
    return sorted(found, key=lambda f: hashlib.sha256(f.relative_to(folder).as_posix().encode()).digest())


def _file(path: Path, characters: int) -> Iterator[tuple[str, str | Chat]]:
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        yield str(path), files.text(path, characters)
        return
    for where, row in reader(path):
        yield where, read_row(row, where)
