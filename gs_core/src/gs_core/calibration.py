"""Calibration tokens: from a text file, a folder of them, jsonl, or token arrays. Same input, same tokens."""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from gs_core.errors import CalibrationError

Tokenize = Callable[[str], np.ndarray]

# Enough rows for products to be at their fastest; what lies between products would sooner stay in a cache.
TOKENS_PER_BATCH = 1024
# Text is read until it surely holds enough tokens; a tokenizer rarely packs more than this into one.
CHARACTERS_PER_TOKEN = 16
# As many times the tokens needed are read, so that the windows spread over more of the text.
SPREAD = 4


def load(source: str | Path | np.ndarray, samples: int, seq_len: int, tokenize: Tokenize) -> np.ndarray:
    """Token ids, int64 ``(samples, seq_len)``: windows spread evenly over the text, in order.

    ``source``: a ``.npy`` file or array of token ids (``(n,)`` or ``(samples, seq_len)`` and larger), a
    ``.jsonl`` file (fields ``text``, ``prompt`` or ``content``), a text file, or a folder of such text files.
    Raises ``CalibrationError`` when there are too few tokens, with the numbers.
    """
    tokens = stream(source, samples * seq_len * SPREAD, tokenize)
    if tokens.ndim == 2:
        if tokens.shape[1] >= seq_len:
            return _enough(tokens[:, :seq_len], samples, seq_len)
        tokens = tokens.reshape(-1)
    return windows(tokens, samples, seq_len)


def stream(source: str | Path | np.ndarray, wanted: int, tokenize: Tokenize) -> np.ndarray:
    """Token ids of a source, int64: ``(n,)`` from text, at least ``wanted`` of them where there are so many, or
    an array's own one or two dimensions."""
    if isinstance(source, np.ndarray) or str(source).endswith(".npy"):
        tokens = source if isinstance(source, np.ndarray) else _load_npy(Path(source))
        if tokens.ndim not in (1, 2) or not np.issubdtype(tokens.dtype, np.integer):
            raise CalibrationError(
                f"token arrays must be integers of one or two dimensions, got {tokens.dtype} {tokens.shape}"
            )
        return tokens.astype(np.int64)
    pieces: list[np.ndarray] = [np.empty(0, np.int64)]
    found = 0
    for text in _texts(Path(source), wanted * CHARACTERS_PER_TOKEN):
        pieces.append(tokenize(text))
        found += len(pieces[-1])
        if found >= wanted:
            break
    return np.concatenate(pieces)


def windows(tokens: np.ndarray, samples: int, seq_len: int) -> np.ndarray:
    """``samples`` windows of ``seq_len`` tokens, evenly spread, never overlapping. ``(samples, seq_len)``."""
    return _enough(tokens[: len(tokens) // seq_len * seq_len].reshape(-1, seq_len), samples, seq_len)


def _enough(rows: np.ndarray, samples: int, seq_len: int) -> np.ndarray:
    if len(rows) < samples:
        raise CalibrationError(
            f"the calibration data gives {len(rows)} samples of {seq_len} tokens, the recipe asks for {samples}; "
            "give more text, or lower --samples or --seq-len"
        )
    return np.ascontiguousarray(rows[np.arange(samples) * len(rows) // samples])


def _load_npy(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise CalibrationError(f"{path}: not a .npy array of tokens ({error})") from None


def _texts(path: Path, characters: int) -> Iterator[str]:
    if path.is_dir():
        files = [f for f in path.rglob("*") if f.is_file()]
        # In an order that is always the same and yet not the alphabet's, so that a prefix is a fair sample.
        files.sort(key=lambda f: hashlib.sha256(f.relative_to(path).as_posix().encode()).digest())
        for file in files:
            text = _readable(file)
            if text:
                yield text
    elif path.suffix == ".jsonl":
        yield from _jsonl(path)
    elif path.is_file():
        text = _readable(path)
        if text is None:
            raise CalibrationError(f"{path}: not UTF-8 text")
        yield text[:characters]
    else:
        raise CalibrationError(f"{path}: no such calibration file or folder")


def _readable(path: Path) -> str | None:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None
    except OSError as error:
        raise CalibrationError(f"{path}: {error.strerror or error}") from None
    return None if "\0" in text else text


def _jsonl(path: Path) -> Iterator[str]:
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _row(line, f"{path}, line {number}")
    except OSError as error:
        raise CalibrationError(f"{path}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise CalibrationError(f"{path}: not UTF-8 text") from None


def _row(line: str, where: str) -> str:
    try:
        row = json.loads(line)
        text = row if isinstance(row, str) else next(row[k] for k in ("text", "prompt", "content") if k in row)
    except (ValueError, StopIteration, TypeError, RecursionError):
        raise CalibrationError(f"{where}: expected a JSON object with 'text', 'prompt' or 'content'") from None
    return str(text)


def check(tokens: np.ndarray, vocabulary: int) -> None:
    """Raise ``CalibrationError`` for ids that the model has no embedding for."""
    if tokens.min() < 0 or tokens.max() >= vocabulary:
        raise CalibrationError(
            f"token ids run from {tokens.min()} to {tokens.max()}, the model has {vocabulary}; "
            "was the data tokenized for another model?"
        )


def batches(tokens: np.ndarray) -> list[np.ndarray]:
    """Cut ``(samples, seq_len)`` into batches of about ``TOKENS_PER_BATCH`` tokens."""
    size = max(1, TOKENS_PER_BATCH // tokens.shape[1])
    return [tokens[i : i + size] for i in range(0, len(tokens), size)]
