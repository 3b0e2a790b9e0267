"""The journal: which parts of the output are finished, on disk, before the next begins.

``OUT/.gsq`` exists exactly while a run is unfinished. It holds ``run.json`` (what run this is), ``journal.jsonl``
(one line for each finished part) and ``activations/N/`` (what block N returned, so that block N + 1 can start
without the blocks before it; ``activations/N-float/`` where no block before was quantized).
"""

import fcntl
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gs_core.arrays import Array, RawTensor
from gs_core.errors import OutputError
from gs_core.storage import read_header, sync_folder, write_json, write_safetensors

FOLDER, RUN, RECORDS, REPORT = ".gsq", "run.json", "journal.jsonl", "gsq_report.json"


class Journal:
    """Open the output folder for one run. Raises ``OutputError`` for a folder that is not ours to write.

    run: what identifies the run, plain data; a folder with another one is refused, with the difference.
    restart: throw away an unfinished or finished run in this folder first (and only what that run wrote).
    """

    def __init__(self, out: Path, run: Mapping[str, Any], restart: bool = False):
        self.out, self.folder = out, out / FOLDER
        try:
            out.mkdir(parents=True, exist_ok=True)
            self._lock_folder()
            try:
                self._adopt(dict(run), restart and self._discard())
                self.records = self._read()
            except BaseException:
                self.close()
                raise
        except OSError as error:
            raise OutputError(f"cannot use {out}: {error.strerror or error}") from None

    def _lock_folder(self) -> None:
        self._handle = os.open(self.out, os.O_RDONLY)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._handle)
            raise OutputError(f"{self.out} is being written by another run; wait for it, or stop it") from None

    def _adopt(self, run: dict[str, Any], ours: bool) -> None:
        path = self.folder / RUN
        if path.is_file():
            try:
                before = json.loads(path.read_text(encoding="utf-8"))
            except ValueError:
                raise OutputError(f"{path} is damaged; pass --restart to throw the run away") from None
            _compare(self.out, before, run)
            return
        others = sorted(p.name for p in self.out.iterdir() if p.name != FOLDER)
        if others and not ours:
            finished = f" It holds a finished run: {REPORT} is there." if REPORT in others else ""
            raise OutputError(
                f"{self.out} is not empty ({others[0]} …) and no unfinished run of ours.{finished} "
                "Choose another folder, or pass --restart to replace a run of ours"
            )
        self.folder.mkdir(exist_ok=True)
        write_json(self.folder / RUN, run)
        sync_folder(self.out)

    def _discard(self) -> bool:
        """Remove what an earlier run of ours wrote, by its own account; nothing else. False when there was none."""
        unfinished, report = (self.folder / RUN).is_file(), self.out / REPORT
        written = [name for record in self._read() for name in record["files"]]
        if report.is_file():
            try:
                written += [os.fspath(name) for name in json.loads(report.read_text(encoding="utf-8"))["files"]]
            except (ValueError, KeyError, TypeError):
                raise OutputError(f"{report} is not a report of ours; nothing was removed") from None
        elif not unfinished:
            return False
        if unfinished:
            written += [path.name for path in self.out.glob("*.partial")]  # it was killed while it wrote these
        for name in {*written, REPORT}:
            if name == os.path.basename(name):
                (self.out / name).unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)
        return True

    def _read(self) -> list[dict[str, Any]]:
        path = self.folder / RECORDS
        if not path.is_file():
            return []
        records = []
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                break  # the line that was being written when the process died
            sizes = record["files"]
            if any(not _has_size(self.out / name, size) for name, size in sizes.items()):
                break  # someone touched the file: do this part, and what follows, again
            records.append(record)
        return records

    def record(self, record: Mapping[str, Any]) -> None:
        """Note a finished part: ``files`` (name → bytes) must be on disk already."""
        path = self.folder / RECORDS
        complete = "".join(json.dumps(r, separators=(",", ":")) + "\n" for r in [*self.records, dict(record)])
        temporary = path.with_suffix(".partial")
        try:
            with open(temporary, "w", encoding="utf-8") as file:
                file.write(complete)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync_folder(self.folder)
        except OSError as error:
            raise OutputError(f"could not write {path}: {error.strerror or error}") from None
        self.records.append(dict(record))

    def finish(self) -> None:
        """The output is complete: remove the journal, its identity last."""
        shutil.rmtree(self.folder / "activations", ignore_errors=True)
        (self.folder / RECORDS).unlink(missing_ok=True)
        shutil.rmtree(self.folder)
        sync_folder(self.out)

    def close(self) -> None:
        """Let another run have the folder."""
        os.close(self._handle)


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _compare(out: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    different = sorted(k for k in {*before, *now} if before.get(k) != json.loads(json.dumps(now.get(k))))
    if different:
        raise OutputError(
            f"{out} holds an unfinished run with another {', '.join(different)}; finish that one, choose another "
            "folder, or pass --restart to throw it away"
        )


class Activations:
    """What a block returned for each batch, on disk: memory holds one batch at a time."""

    def __init__(self, journal: Journal, block: int, stream: str = ""):
        self.folder = journal.folder / "activations" / f"{block}{stream}"

    def write(self, batch: int, arrays: Mapping[str, Array]) -> None:
        """Keep one batch, durably."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_safetensors(self.folder / f"{batch}.safetensors", arrays.items())

    def read(self, batch: int) -> dict[str, RawTensor]:
        """One batch as raw tensors, for the adapter to take up."""
        header = read_header(self.folder / f"{batch}.safetensors")
        return {name: tensor.read() for name, tensor in header.items()}

    def discard(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
