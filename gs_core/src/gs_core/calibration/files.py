"""Read text, JSON and CSV files, and only as much of them as needed."""

import csv
import json
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import IO, Any

from gs_core.calibration.rows import TEXT_FIELDS
from gs_core.errors import CalibrationError

MAX_ROW_BYTES = 2**24
"""Bytes of a line, or characters of a JSON value. A longer one is an error, because it must fit into memory."""
READ_CHARACTERS = 2**16
"""Characters of a JSON file read at a time; doubled while a value is longer."""
SPACE = re.compile(r"[ \t\r\n]*")


class NotTextError(CalibrationError):
    """The file is not UTF-8 text."""


@contextmanager
def opened(path: Path, mode: str = "r", encoding: str | None = None) -> Iterator[IO[Any]]:
    """The file, opened to read. Never blocks. Raises ``CalibrationError`` if it is not a regular file."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise CalibrationError(f"{path}: not a regular file (a pipe or device?); save the data to a file first")
        with open(path, mode, encoding=encoding, opener=_open_without_blocking) as file:
            yield file
    except UnicodeDecodeError:
        raise NotTextError(f"{path}: not UTF-8 text") from None
    except OSError as error:
        raise CalibrationError(f"{path}: {error.strerror or error}") from None


def _open_without_blocking(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def text(path: Path, characters: int) -> str:
    """The first ``characters`` of a text file. Raises ``NotTextError`` for a binary file."""
    with opened(path, encoding="utf-8") as file:
        found = file.read(characters)
    if "\0" in found:
        raise NotTextError(f"{path}: not UTF-8 text")
    return found


def jsonl(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the place of each value of a JSON Lines file, for messages, and the value. Skips empty lines."""
    for number, line in _lines(path):
        if line.strip():
            where = f"{path}, line {number}"
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise CalibrationError(f"{where}: not JSON ({_json_reason(error)})") from None
            yield where, value


def json_values(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the place and the value of each element of a JSON file: a list, or values one after another."""
    with opened(path, encoding="utf-8-sig") as file:
        reader = _JsonReader(file)
        is_list = reader.take("[")
        for number in count(1):
            character = reader.peek()
            if not character or (is_list and character == "]"):
                break
            where = f"{path}, item {number}"
            if is_list and number > 1 and not reader.take(","):
                raise CalibrationError(f"{where}: not JSON (a comma is missing)")
            try:
                value = reader.value()
            except (ValueError, RecursionError) as error:
                raise CalibrationError(f"{where}: not JSON ({_json_reason(error)})") from None
            yield where, value
        if is_list and not reader.take("]"):
            raise CalibrationError(f"{path}: cut short: the list has no end; copy the file again")


class _JsonReader:
    """Parses the values of a JSON text one by one. Reads the file only as far as needed."""

    def __init__(self, file: IO[str]):
        self.file, self.text, self.at, self.characters = file, "", 0, READ_CHARACTERS

    def peek(self) -> str:
        """The next character that is not white space; empty at the end."""
        while True:
            match = SPACE.match(self.text, self.at)
            self.at = match.end() if match else self.at
            if self.at < len(self.text) or not self._read_on():
                return self.text[self.at : self.at + 1]

    def take(self, character: str) -> bool:
        """Skip ``character`` if it comes next. Returns True if it did."""
        found = self.peek() == character
        self.at += found
        return found

    def value(self) -> Any:
        """The next value. Raises ``ValueError`` if there is none, or if it is longer than ``MAX_ROW_BYTES``."""
        self.peek()
        while True:
            try:
                found, self.at = json.JSONDecoder().raw_decode(self.text, self.at)
            except ValueError:
                if len(self.text) - self.at > MAX_ROW_BYTES or not self._read_on():
                    raise
            else:
                self.characters = READ_CHARACTERS
                return found

    def _read_on(self) -> bool:
        piece = self.file.read(self.characters)
        self.text, self.at = self.text[self.at :] + piece, 0
        self.characters *= 2
        return bool(piece)


def csv_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the place of each row of a CSV file, for messages, and the row with only its text column."""
    reader = csv.DictReader((line for _, line in _lines(path)), strict=True)
    try:
        columns = reader.fieldnames or []
        column = next((field for field in TEXT_FIELDS if field in columns), None)
        if column is None:
            raise CalibrationError(
                f"{path}: no column is named 'text', 'prompt' or 'content'; it has {', '.join(columns)[:200] or 'none'}"
            )
        for row in reader:
            yield f"{path}, line {reader.line_num}", {column: row[column]}
    except csv.Error as error:
        raise CalibrationError(f"{path}, line {reader.reader.line_num}: not CSV ({error})") from None


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    with opened(path, "rb") as file:
        for number in count(1):
            line = file.readline(MAX_ROW_BYTES + 1)
            if not line:
                return
            if len(line) > MAX_ROW_BYTES:
                raise CalibrationError(f"{path}, line {number}: longer than {MAX_ROW_BYTES} bytes; split it")
            try:
                decoded = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise NotTextError(f"{path}, line {number}: not UTF-8 text") from None
            yield number, decoded


def _json_reason(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else getattr(error, "msg", str(error))
