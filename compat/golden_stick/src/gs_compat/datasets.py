"""``get_datasets``: evaluation sets from local files, as MindSpore datasets."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gs_compat.reading import READERS, wikitext
from gs_compat.samples import Encoder, Sample, chunks, samples
from gs_schemas import unknown

KINDS = ("wikitext2", *READERS)


def get_datasets(
    ds_type: str,
    ds_path: str | Path,
    mode: str,
    batch_size: int,
    seq_length: int,
    max_new_tokens: int,
    tokenizer: Any,
    ignore_token_id: int = -100,
    repeat: int = 1,
    need_pad: bool = False,
    n_samples: int = -1,
    add_special_tokens: bool = True,
) -> Any:
    """A batched ``GeneratorDataset`` with columns ``input_ids`` and ``labels`` (C-Eval: ``subjects`` before them;
    WikiText-2: ``input_ids`` alone), int32.

    ds_type: ``squad1.1``, ``boolq``, ``ceval`` (``ds_path``: a folder), ``gsm8k``, ``wikitext2`` or ``calibrate``
    (JSON lines with ``prompt``). mode: ``train``, ``test`` or ``eval`` (see ``samples.Encoder``). n_samples: so many
    from the beginning, all of them when it is not positive.

    Raises ``ValueError`` for another type or mode, or batches of samples that differ in length.
    """
    kind = ds_type.lower()
    if kind not in KINDS:
        raise ValueError(unknown("type of dataset", ds_type, KINDS))
    encoder = Encoder(tokenizer, mode, seq_length, ignore_token_id, need_pad, add_special_tokens)
    found = read(kind, Path(ds_path), encoder, max_new_tokens, n_samples)
    return _dataset(found, batch_size, repeat)


def read(kind: str, path: Path, encoder: Encoder, max_new_tokens: int = 0, n_samples: int = -1) -> list[Sample]:
    """The samples of a dataset, without MindSpore."""
    if kind != "wikitext2":
        return samples(READERS[kind](path), encoder, n_samples)
    length = encoder.seq_length - max_new_tokens
    if length < 1:
        raise ValueError(f"seq_length {encoder.seq_length} leaves no room for max_new_tokens {max_new_tokens}")
    return chunks(wikitext(path), encoder.tokenizer, length, n_samples, encoder.add_special_tokens)


def _dataset(found: list[Sample], batch_size: int, repeat: int) -> Any:
    from mindspore.dataset import GeneratorDataset

    rows, columns = _rows(found)
    shapes = {tuple(column.shape for column in row) for row in rows}
    if batch_size > 1 and len(shapes) > 1:
        raise ValueError(f"batch_size {batch_size}: the samples differ in length; use need_pad=True, or batch_size 1")
    dataset = GeneratorDataset(source=rows, column_names=columns, shuffle=False)
    return dataset.batch(batch_size, drop_remainder=False).repeat(repeat)


def _rows(found: list[Sample]) -> tuple[list[tuple[Any, ...]], list[str]]:
    if not found:
        raise ValueError("the dataset has no sample of this length; lower seq_length, or give more text")
    if found[0].labels is None:
        return [(s.input_ids,) for s in found], ["input_ids"]
    if not found[0].subject:
        return [(s.input_ids, s.labels) for s in found], ["input_ids", "labels"]
    return [(np.array(s.subject), s.input_ids, s.labels) for s in found], ["subjects", "input_ids", "labels"]


def _create(kind: str) -> Callable[..., Any]:
    def create(ds_path: str, mode: str, bs: int, seq_length: int, tokenizer: Any, *rest: Any, **more: Any) -> Any:
        return get_datasets(kind, ds_path, mode, bs, seq_length, 0, tokenizer, *rest, **more)

    create.__doc__ = f"""``get_datasets("{kind}", …)`` without ``max_new_tokens``."""
    return create


create_squad_dataset = _create("squad1.1")
create_boolq_dataset = _create("boolq")
create_ceval_dataset = _create("ceval")
create_gsm8k_dataset = _create("gsm8k")
create_calibrate_dataset = _create("calibrate")


def create_wikitext_dataset(
    ds_path: str, bs: int, seq_length: int, max_new_tokens: int, tokenizer: Any, *rest: Any, **more: Any
) -> Any:
    """``get_datasets("wikitext2", …)`` without ``mode`` and ``ignore_token_id``."""
    return get_datasets("wikitext2", ds_path, "train", bs, seq_length, max_new_tokens, tokenizer, -100, *rest, **more)
