"""The journal: the finished parts of a run, so that a killed run resumes and writes the same bytes.

``OUT/.gsq`` exists exactly while a run is unfinished:

- ``run.json``: the recipe, the model and all other data that must be the same when the run resumes.
- ``journal.jsonl``: one line per finished part, in order. A part is a block, or a shard of the tensors outside the
  blocks. A line records the number of the part, the sha256 of its files and of the saved activations, and a digest of
  this line and the line before it.
- ``begun.jsonl``: names of files in OUT, each recorded before the file is written.
- ``activations/N/``: outputs of block N for each batch, the inputs of block N + 1; ``activations/N-float/`` are
  those of the float model. ``activations.jsonl``: their sha256.
- ``*.partial``: files that are being written.
"""

import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gs_core.arrays import Array, RawTensor
from gs_core.errors import OutputError
from gs_core.storage import (
    WORK,
    begun,
    file_digest,
    is_plain_file,
    is_plain_name,
    read_header,
    record_begun,
    sync_folder,
    write_json,
    write_safetensors,
    write_text,
)

FOLDER, RUN, RECORDS, REPORT = WORK, "run.json", "journal.jsonl", "gsq_report.json"
ACTIVATIONS, SAVED = "activations", "activations.jsonl"
RESTART = "Pass `restart=` to begin again"

log = logging.getLogger("gs_core")


class Journal:
    """Open the output folder for one run.

    Args:
        out: the output folder; created if absent.
        run: plain data that identifies the run. A folder with an unfinished run is refused if its data differs.
        restart: remove an unfinished or finished run first: only files that the run recorded as its own.

    Raises:
        OutputError: the folder is not empty and holds no unfinished run, another process writes to it, or the journal
            is damaged.
    """

    def __init__(self, out: Path, run: Mapping[str, Any], restart: bool = False):
        self.out, self.folder = out, out / FOLDER
        self.records: list[dict[str, Any]] = []
        self.saved: dict[str, str] = {}
        """sha256 of every file of saved activations, by its path below ``activations``."""
        self._seed = _digest(run)
        try:
            out.mkdir(parents=True, exist_ok=True)
            self._lock_folder()
            try:
                self._adopt(json.loads(json.dumps(run)), restart and self._discard())
                self.saved = self._read_saved()
                self.records = self._resumable(self._read())
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

    # --- opening ---------------------------------------------------------------------------------------------

    def _adopt(self, run: dict[str, Any], ours: bool) -> None:
        if self.folder.is_symlink() or (self.folder.exists() and not self.folder.is_dir()):
            raise OutputError(f"{self.folder} is not a folder; remove it and run the same command again")
        for stale in self.folder.rglob("*.partial"):
            stale.unlink()
        path = self.folder / RUN
        if path.exists():
            try:
                before = json.loads(path.read_bytes())
            except (ValueError, RecursionError):
                before = None
            if not isinstance(before, dict):
                raise OutputError(f"{path} is damaged. {RESTART}")
            _compare(self.out, before, run)
            return
        others = sorted(p.name for p in self.out.iterdir() if p.name != FOLDER)
        if others and not ours:
            raise not_empty(self.out, others[0])
        self.folder.mkdir(exist_ok=True)
        write_json(path, run)
        sync_folder(self.out)

    def _discard(self) -> bool:
        """Remove the files that an earlier run recorded as its own. False if there was no run."""
        names = begun(self.out)
        unfinished = bool(names) or (self.folder / RUN).exists()
        if not unfinished:
            if not os.path.lexists(self.out / REPORT):
                return False
            names = _reported(self.out)
        for name in names:
            if is_plain_file(self.out / name):
                (self.out / name).unlink()
        if unfinished:
            shutil.rmtree(self.folder)
        return True

    def _read(self) -> list[dict[str, Any]]:
        """The recorded parts. Raises ``OutputError`` if a line is missing, repeated, moved or changed."""
        path = self.folder / RECORDS
        content = path.read_bytes() if is_plain_file(path) else b""
        *lines, rest = content.split(b"\n")
        if rest and (
            _parsed(rest) or not rest.startswith(b"{")
        ):  # else the last line is incomplete: its part is not recorded
            lines.append(rest)
        records: list[dict[str, Any]] = []
        digest = self._seed
        for part, line in enumerate(lines):
            record = _parsed(line)
            if record.get("part") != part or record.pop("digest", "") != _digest([digest, record]):
                raise OutputError(
                    f"{path}: line {part + 1} is not the record of part {part}: the file is damaged, or a line is "
                    f"missing, repeated or changed. {RESTART}"
                )
            digest = _digest([digest, record])
            records.append(record)
        return records

    def _read_saved(self) -> dict[str, str]:
        path = self.folder / SAVED
        lines = path.read_bytes().splitlines() if is_plain_file(path) else []
        records = [_parsed(line) for line in lines]
        return {record["file"]: record["sha256"] for record in records if {"file", "sha256"} <= record.keys()}

    def _resumable(self, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The longest prefix of ``records`` with intact files and intact activations to resume from."""
        damaged = next(((p, why) for p, record in enumerate(records) if (why := self._damage(record))), None)
        part, why = damaged or (len(records), "")
        while part and (lost := self._damaged_activations(records[part - 1])):
            why, part = why or lost, part - 1
        if part < len(records):
            log.warning("%s. Part %d and the parts after it are repeated", why, part)
        return records[:part]

    def _damage(self, record: Mapping[str, Any]) -> str:
        for name, facts in record["files"].items():
            if not _is_intact(self.out / name, facts["sha256"]):
                return f"{self.out / name} is missing, or its sha256 differs from the file that the run wrote"
        return ""

    def _damaged_activations(self, record: Mapping[str, Any]) -> str:
        for name, digest in record.get("activations", {}).items():
            if not _is_intact(self.folder / ACTIVATIONS / name, digest):
                return f"{self.folder / ACTIVATIONS / name} is missing or damaged (its sha256 differs)"
        return ""

    # --- recording -------------------------------------------------------------------------------------------

    def save(self, name: str) -> None:
        """Record the sha256 of a file of saved activations."""
        self.saved[name] = file_digest(self.folder / ACTIVATIONS / name)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
        with open(os.open(self.folder / SAVED, flags, 0o666), "a", encoding="utf-8") as file:
            file.write("\n" + json.dumps({"file": name, "sha256": self.saved[name]}) + "\n")

    def is_saved(self, name: str) -> bool:
        """True if the file of saved activations is intact."""
        return name in self.saved and _is_intact(self.folder / ACTIVATIONS / name, self.saved[name])

    def record(self, part: int, files: Iterable[str], streams: Sequence[str] = (), **facts: Any) -> None:
        """Record a finished part.

        Args:
            part: number of the part, from 0. Parts are recorded in order.
            files: names of its files in the output folder. They must be on disk.
            streams: folders of the activations that the next part starts from, such as ``3`` and ``3-float``.
            facts: plain data for the report.
        """
        written = {}
        for name in files:
            path = self.out / name
            try:
                written[name] = {"bytes": path.stat().st_size, "sha256": file_digest(path)}
            except OSError as error:
                raise OutputError(f"cannot read {path} again: {error.strerror or error}") from None
            record_begun(path)
        saved = {name: digest for name, digest in self.saved.items() if name.split("/")[0] in streams}
        record = json.loads(json.dumps({"part": part, "files": written, "activations": saved} | facts))
        records = [*self.records, record]
        lines, digest = [], self._seed
        for each in records:
            digest = _digest([digest, each])
            lines.append(json.dumps(each | {"digest": digest}, separators=(",", ":")) + "\n")
        write_text(self.folder / RECORDS, "".join(lines))
        self.records = records

    def finish(self) -> None:
        """Remove the journal of a complete output. ``run.json`` is removed before ``begun.jsonl``."""
        shutil.rmtree(self.folder / ACTIVATIONS, ignore_errors=True)
        for name in (RECORDS, RUN):
            (self.folder / name).unlink(missing_ok=True)
        shutil.rmtree(self.folder)
        sync_folder(self.out)

    def close(self) -> None:
        """Let another run have the folder."""
        os.close(self._handle)


def not_empty(out: Path, file: str) -> OutputError:
    """The error for a folder without an unfinished run that contains ``file``."""
    advice = "Choose another folder"
    if is_plain_file(out / REPORT):
        advice = f"It has a finished run ({REPORT}). {advice}, or pass `restart=` to replace that run"
    return OutputError(f"{out} is not empty ({file} …) and has no unfinished run. {advice}")


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _parsed(line: bytes) -> dict[str, Any]:
    """The object in a line of JSON; empty if the line is damaged or not an object."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def _is_intact(path: Path, digest: str) -> bool:
    return is_plain_file(path) and file_digest(path) == digest


def _reported(out: Path) -> set[str]:
    """Names of the files of a finished run, checked against its report. Raises ``OutputError`` if one has changed."""
    path = out / REPORT
    try:
        if not is_plain_file(path):
            raise ValueError
        digests = dict(json.loads(path.read_bytes())["sha256"])
        if not all(is_plain_name(name) for name in digests):
            raise ValueError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise OutputError(
            f"{path} is not a report of this program. Nothing was removed. Choose another folder"
        ) from None
    for name, digest in digests.items():
        if os.path.lexists(out / name) and not _is_intact(out / name, digest):
            raise OutputError(
                f"{out / name} was changed after the finished run: its sha256 differs from {REPORT}. "
                "Nothing was removed. Move the file away, or choose another folder"
            )
    return {*digests, REPORT}


def _compare(out: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    different = sorted(k for k in {*before, *now} if before.get(k) != now.get(k))
    if different:
        raise OutputError(
            f"{out} holds an unfinished run with another {', '.join(different)}; finish that one, choose another "
            "folder, or pass `restart=` to remove it and begin again"
        )


class Activations:
    """Outputs of one block for each batch, on disk: memory holds one batch at a time."""

    def __init__(self, journal: Journal, block: int, stream: str = ""):
        self._journal, self.name = journal, f"{block}{stream}"
        self.folder = journal.folder / ACTIVATIONS / self.name

    def write(self, batch: int, arrays: Mapping[str, Array]) -> None:
        """Keep one batch, durably."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_safetensors(self.folder / f"{batch}.safetensors", arrays.items())
        self._journal.save(f"{self.name}/{batch}.safetensors")

    def read(self, batch: int) -> dict[str, RawTensor]:
        """One batch as raw tensors, for the adapter to take up."""
        header = read_header(self.folder / f"{batch}.safetensors")
        return {name: tensor.read() for name, tensor in header.items()}

    def are_intact(self, count: int) -> bool:
        """True if the first ``count`` batches are on disk as they were written."""
        return all(self._journal.is_saved(f"{self.name}/{batch}.safetensors") for batch in range(count))

    def discard(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
