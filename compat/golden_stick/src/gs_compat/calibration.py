"""Calibration data in every form that scripts hand over, as one array of tokens."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

COLUMN = "input_ids"


def tokens(dataset: Any, pad_token_id: int | None = None, longest: int | None = None) -> np.ndarray:
    """Token ids, int64 ``(samples, seq_len)``.

    dataset: a MindSpore dataset or another iterable of mappings with ``input_ids``, an iterable of arrays or lists,
    or one array; a sample is ``(n,)``, a batch ``(batch, n)``. Padding at the end of a sample is dropped. Samples of
    one length stay as they are; others are joined and cut into pieces as long as the longest. ``longest``: the most
    tokens a piece may have.

    Raises ``TypeError`` for what holds no integers, ``ValueError`` when there are fewer than two tokens.
    """
    samples = [_unpadded(sample, pad_token_id) for sample in _samples(dataset)]
    lengths = {len(sample) for sample in samples}
    total = sum(len(sample) for sample in samples)
    if total < 2:
        raise ValueError(
            f"the calibration dataset has {len(samples)} samples with {total} tokens; at least 2 are needed"
        )
    length = min(max(2, *lengths), longest or total, total)
    if len(lengths) == 1 and length <= len(samples[0]):
        return np.stack(samples)[:, :length]
    joined = np.concatenate(samples)
    return joined[: len(joined) // length * length].reshape(-1, length)


def _samples(dataset: Any) -> Iterator[np.ndarray]:
    for item in _items(dataset):
        if isinstance(item, Mapping):
            if COLUMN not in item:
                raise TypeError(f"a sample has no '{COLUMN}'; it has: {', '.join(map(str, item)) or 'nothing'}")
            item = item[COLUMN]
        array = np.asarray(item.asnumpy() if hasattr(item, "asnumpy") else item)
        if array.ndim not in (1, 2) or not np.issubdtype(array.dtype, np.integer):
            raise TypeError(f"a sample must be integers of one or two dimensions, got {array.dtype} {array.shape}")
        yield from array.astype(np.int64).reshape(-1, array.shape[-1])


def _items(dataset: Any) -> Iterable[Any]:
    if hasattr(dataset, "create_dict_iterator"):
        return dataset.create_dict_iterator(num_epochs=1, output_numpy=True)
    if isinstance(dataset, np.ndarray) or hasattr(dataset, "asnumpy"):
        return [dataset]
    if isinstance(dataset, Mapping):
        return [dataset]
    if isinstance(dataset, str) or not isinstance(dataset, Iterable):
        raise TypeError(f"calibration data: got {type(dataset).__name__}, expected a dataset, samples, or an array")
    items = list(dataset)
    # [1, 2, 3] is one sample, not three.
    return [items] if items and isinstance(items[0], int | np.integer) else items


def _unpadded(sample: np.ndarray, pad_token_id: int | None) -> np.ndarray:
    if pad_token_id is None:
        return sample
    kept = np.flatnonzero(sample != pad_token_id)
    return sample[: kept[-1] + 1] if len(kept) else sample[:0]
