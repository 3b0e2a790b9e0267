"""Records as token ids: what a calibration or an evaluation goes through."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from gs_compat.reading import Record

MODES = ("train", "test", "eval")


@dataclass(frozen=True)
class Sample:
    """Token ids, int32 ``(n,)``: what the model is given, what it should say. ``labels`` is None for running text."""

    input_ids: np.ndarray
    labels: np.ndarray | None = None
    subject: str = ""


@dataclass(frozen=True)
class Encoder:
    """How records become tokens.

    ``train``: prompt and answer as one sequence, whose labels hide the prompt behind ``ignore_token_id``. ``test``,
    ``eval``: the prompt alone, the answer as its labels. Neither is longer than ``seq_length``. ``need_pad`` fills
    both up to it, with the tokenizer's pad token (labels of ``train``: with ``ignore_token_id``).

    Raises ``ValueError`` for another mode, or to pad without a pad token.
    """

    tokenizer: Any
    mode: str
    seq_length: int
    ignore_token_id: int = -100
    need_pad: bool = False
    add_special_tokens: bool = True

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode: got {self.mode!r}, allowed: {', '.join(MODES)}")
        if self.need_pad and self.tokenizer.pad_token_id is None:
            raise ValueError("need_pad: the tokenizer has no pad token; set tokenizer.pad_token")

    def encode(self, record: Record) -> Sample:
        """One record."""
        if self.mode != "train":
            given, wanted = self._ids(record.prompt), self._ids(record.answer, plain=True)
            return Sample(self._padded(given), self._padded(wanted), record.subject)
        whole = self._ids(record.prompt + record.answer, ended=True)
        labels = whole.copy()
        labels[: len(self._ids(record.prompt))] = self.ignore_token_id
        return Sample(self._padded(whole), self._padded(labels, self.ignore_token_id), record.subject)

    def _ids(self, text: str, plain: bool = False, ended: bool = False) -> np.ndarray:
        """The first ``seq_length`` tokens; ``ended``: the tokenizer's own end of sequence counts."""
        special = self.add_special_tokens and not plain
        ids = list(self.tokenizer.encode(text, add_special_tokens=special))
        end = getattr(self.tokenizer, "eos_token_id", None)
        if special and ended and end is not None and ids[-1:] != [end]:
            ids.append(end)
        elif special and not ended and end is not None and ids[-1:] == [end]:
            ids.pop()
        return np.array(ids[: self.seq_length], np.int32)

    def _padded(self, ids: np.ndarray, filling: int | None = None) -> np.ndarray:
        if not self.need_pad:
            return ids
        value = self.tokenizer.pad_token_id if filling is None else filling
        return np.pad(ids, (0, self.seq_length - len(ids)), constant_values=value)


def samples(records: Iterable[Record], encoder: Encoder, n_samples: int = -1) -> list[Sample]:
    """The first ``n_samples`` of the records (all of them when it is not positive)."""
    return [encoder.encode(record) for record in islice(records, n_samples if n_samples > 0 else None)]


def chunks(
    text: str, tokenizer: Any, length: int, n_samples: int = -1, add_special_tokens: bool = True
) -> list[Sample]:
    """Running text cut into samples of exactly ``length`` tokens; what is left over is dropped."""

    def cut() -> Iterator[Sample]:
        ids = np.array(tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"], np.int32)
        for start in range(0, len(ids) - length + 1, length):
            yield Sample(ids[start : start + length])

    return list(islice(cut(), n_samples if n_samples > 0 else None))
