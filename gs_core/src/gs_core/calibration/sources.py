"""Sources of calibration text: files, folders, datasets, lists. What is missing is found before anything is read."""

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
    """The path that a source names, which exists; other objects as they are. Reads no data.

    Raises ``CalibrationError`` for a path that is empty, missing, a pipe or a device, for a hub id that is not in the
    local cache, for a file that needs pyarrow where there is none, and for objects that can be read only once.
    """
    if isinstance(source, str) and not source.strip():
        raise CalibrationError("the path of the text is empty; name a file, a folder or a dataset")
    if isinstance(source, str | Path):
        return _existing(str(source))
    if isinstance(source, Mapping) and "input_ids" not in source:
        raise CalibrationError(
            f"cannot read a {type(source).__name__} of {', '.join(map(str, source))[:200]} as text; "
            "give one of its values, as dataset['train']"
        )
    if isinstance(source, Iterator):
        raise CalibrationError(f"a {type(source).__name__} can be read only once; give a list")
    return source


def pieces(source: Any, characters: int) -> Iterator[tuple[str, str | Chat]]:
    """The texts and chats of a located source, each after its place for messages. Of a text file, only the first
    ``characters`` are read."""
    if isinstance(source, Path):
        if source.is_dir():
            yield from _folder(source, characters)
        else:
            yield from _file(source, characters)
    elif isinstance(source, Iterable):
        for number, row in enumerate(source, 1):
            where = f"item {number} of the calibration data"
            yield where, read_row(row, where)
    else:
        raise CalibrationError(f"cannot read a {type(source).__name__} as text or token ids")


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
    elif path.suffix.lower() in arrow.SUFFIXES:
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
    raise CalibrationError(f"{name}: no such calibration file or folder{hint}")


def _in_datasets_cache(name: str) -> list[Path]:
    wanted = name.replace("/", "___").replace("_", "").lower()  # the library writes OpenOrca as open_orca
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
    """The data of a dataset's snapshot without its documentation: the training split if files are named after one."""
    found = [
        file
        for file in _shuffled(snapshot)
        if file.suffix.lower() in (*READERS, ".txt") and not file.name.startswith("dataset_info")
    ]
    return [file for file in found if "train" in file.relative_to(snapshot).as_posix()] or found


def _shuffled(folder: Path) -> list[Path]:
    """All regular files, always in the same order, which is not the alphabet's: a prefix is then a fair sample."""
    found = [file for file in folder.rglob("*") if file.is_file()]
    return sorted(found, key=lambda f: hashlib.sha256(f.relative_to(folder).as_posix().encode()).digest())


def _file(path: Path, characters: int) -> Iterator[tuple[str, str | Chat]]:
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        yield str(path), files.text(path, characters)
        return
    for where, row in reader(path):
        yield where, read_row(row, where)
