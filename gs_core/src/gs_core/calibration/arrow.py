"""Read datasets on disk with pyarrow: .arrow and .parquet files, and folders of the ``datasets`` library."""

import json
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gs_core.calibration.files import opened
from gs_core.calibration.rows import FIELDS
from gs_core.errors import CalibrationError

DATASET_SUFFIXES = (".arrow", ".parquet")
ROWS_AT_A_TIME = 16


def require(path: Path) -> None:
    """Raise ``CalibrationError`` if pyarrow is not installed."""
    if find_spec("pyarrow") is None:
        raise CalibrationError(
            f"{path}: pyarrow is needed to read it. Run: pip install datasets. Or save the texts as .jsonl"
        )


def rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the place of each row, for messages, and the row with only the columns in ``FIELDS``."""
    require(path)
    import pyarrow

    number = 0
    try:
        with opened(path, "rb") as file:
            batches = _parquet(path, file) if path.suffix == ".parquet" else _arrow(path, file)
            for batch in batches:
                for start in range(0, batch.num_rows, ROWS_AT_A_TIME):
                    for row in batch.slice(start, ROWS_AT_A_TIME).to_pylist():
                        number += 1
                        yield f"{path}, row {number}", row
    except pyarrow.ArrowException as error:
        raise CalibrationError(
            f"{path}: damaged, or not a {path.suffix} file ({error}); save the dataset again"
        ) from None


def _arrow(path: Path, file: Any) -> Iterable[Any]:
    from pyarrow import ipc

    stream = ipc.open_stream(file)
    columns = _columns(path, stream.schema.names)
    return (batch.select(columns) for batch in stream)


def _parquet(path: Path, file: Any) -> Iterable[Any]:
    from pyarrow.parquet import ParquetFile

    parquet = ParquetFile(file)
    columns = _columns(path, parquet.schema_arrow.names)
    return parquet.iter_batches(batch_size=ROWS_AT_A_TIME, columns=columns)


def _columns(path: Path, names: list[str]) -> list[str]:
    found = [name for name in FIELDS if name in names]
    if not found:
        raise CalibrationError(
            f"{path}: no column is named {', '.join(FIELDS)}; it has {', '.join(names)[:200] or 'none'}"
        )
    return found


def dataset_files(folder: Path) -> list[Path] | None:
    """The .arrow files of a dataset folder, in order; ``None`` if the folder is not a dataset.

    ``Dataset.save_to_disk`` lists the files in ``state.json``. In the cache of the ``datasets`` library a file name
    contains its split; the training split is used. Raises ``CalibrationError`` for a folder of several splits.
    """
    if (folder / "dataset_dict.json").is_file():
        splits = sorted(path.parent.name for path in folder.glob("*/dataset_info.json"))
        raise CalibrationError(f"{folder}: a dataset of several splits; name one: {', '.join(splits)}")
    if not (folder / "dataset_info.json").is_file():
        return None
    if (folder / "state.json").is_file():
        names = _listed(folder / "state.json")
    else:
        names = sorted(path.name for path in folder.glob("*.arrow") if not path.name.startswith("cache-"))
        names = [name for name in names if "-train" in name] or names
    if not names:
        raise CalibrationError(f"{folder}: has a dataset_info.json but no .arrow files; save the dataset again")
    return [folder / name for name in names]


def _listed(path: Path) -> list[str]:
    try:
        names = [entry["filename"] for entry in json.loads(path.read_text(encoding="utf-8"))["_data_files"]]
        plain = all(Path(name).name == name for name in names)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        plain = False
    if not plain:
        raise CalibrationError(f"{path}: damaged; it should list the dataset's .arrow files. Save the dataset again")
    return names
