"""Token ids from a source, cut into samples and batches."""

from typing import Any

import numpy as np

from gs_core.calibration.arrays import token_array
from gs_core.calibration.sources import locate, pieces
from gs_core.calibration.tokenizer import adapt
from gs_core.errors import CalibrationError

TOKENS_PER_BATCH = 1024
"""Enough rows for fast matrix products. With more rows the activations would not fit in a processor's cache."""
CHARACTERS_PER_TOKEN = 16
"""Characters read for each wanted token. A token rarely has more."""
READ_RATIO = 4
"""Tokens read for each token needed, so that the windows are spread over more of the text."""


def load(source: Any, samples: int, seq_len: int, tokenizer: Any) -> np.ndarray:
    """Token ids, int64 ``(samples, seq_len)``: windows spread evenly over the data, in order.

    Args:
        source: one of

            - a text file, or a folder of text files and of the files below;
            - ``.jsonl``: one string or object a line; ``.json``: a list of them. An object has ``text``, ``messages``,
              ``conversations``, ``prompt`` or ``content``;
            - ``.csv`` with a column ``text``, ``prompt`` or ``content``;
            - ``.parquet``, ``.arrow`` or a folder of ``Dataset.save_to_disk``, where pyarrow is installed;
            - a hub id of a dataset in the local Hugging Face cache;
            - a list or ``datasets.Dataset`` of strings or objects as above;
            - token ids, ``(n,)`` or ``(samples, seq_len)`` and larger: a ``.npy`` file, an array, a tensor.
        tokenizer: an opened model, a tokenizer of transformers or tokenizers, or a callable ``str → ids``.
            Token ids need none.

    Raises:
        CalibrationError: the source cannot be read, or has too few tokens. The message names file and line.
    """
    tokens = stream(source, samples * seq_len * READ_RATIO, tokenizer)
    if tokens.ndim == 2:
        if tokens.shape[1] >= seq_len:
            return _spread(tokens[:, :seq_len], samples, seq_len)
        tokens = tokens.reshape(-1)
    return windows(tokens, samples, seq_len)


def stream(source: Any, wanted: int, tokenizer: Any) -> np.ndarray:
    """Token ids of a source.

    At most ``wanted * CHARACTERS_PER_TOKEN`` characters of each text are read and tokenized.

    Returns:
        From text: int64 ``(n,)``, at least ``wanted`` tokens if the text has so many. From an array: the array
        unchanged, with one or two dimensions; a .npy file is mapped into memory.
    """
    source = locate(source)
    tokens = token_array(source)
    if tokens is not None:
        return tokens
    adapted = adapt(tokenizer)
    characters = wanted * CHARACTERS_PER_TOKEN
    found: list[np.ndarray] = [np.empty(0, np.int64)]
    missing = wanted
    for where, piece in pieces(source, characters):
        text = piece if isinstance(piece, str) else _rendered(adapted.render_chat, piece, where)
        text = text[:characters]
        _check_unicode(text, where)
        found.append(adapted.tokenize(text))
        missing -= len(found[-1])
        if missing <= 0:
            break
    return np.concatenate(found)


def windows(tokens: np.ndarray, samples: int, seq_len: int) -> np.ndarray:
    """``samples`` windows of ``seq_len`` tokens, evenly spread, never overlapping. int64 ``(samples, seq_len)``."""
    return _spread(tokens[: len(tokens) // seq_len * seq_len].reshape(-1, seq_len), samples, seq_len)


def check(tokens: np.ndarray, vocabulary: int) -> None:
    """Raise ``CalibrationError`` for ids that the model has no embedding for."""
    if tokens.min() < 0 or tokens.max() >= vocabulary:
        raise CalibrationError(
            f"token ids are between {tokens.min()} and {tokens.max()}, but the model has {vocabulary}. "
            "Tokenize the data with the tokenizer of this model"
        )


def batches(tokens: np.ndarray) -> list[np.ndarray]:
    """Cut ``(samples, seq_len)`` into batches of about ``TOKENS_PER_BATCH`` tokens."""
    size = max(1, TOKENS_PER_BATCH // tokens.shape[1])
    return [tokens[i : i + size] for i in range(0, len(tokens), size)]


def _spread(rows: np.ndarray, samples: int, seq_len: int) -> np.ndarray:
    if len(rows) < samples:
        raise CalibrationError(
            f"the calibration data has {len(rows)} samples of {seq_len} tokens, the recipe needs {samples}; "
            "give more text, or lower `samples=` or `seq_len=`"
        )
    return np.ascontiguousarray(rows[np.arange(samples) * len(rows) // samples], dtype=np.int64)


def _rendered(render: Any, chat: Any, where: str) -> str:
    try:
        return render(chat)
    except CalibrationError as error:
        raise CalibrationError(f"{where}: {error}") from None


def _check_unicode(text: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        surrogate = text[error.start : error.start + 1]
        raise CalibrationError(f"{where}: {surrogate!a} is half of a character (a lone surrogate); remove it") from None
