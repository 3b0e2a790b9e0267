"""Figures of next-token predictions, computed for a few tokens at a time: a vocabulary can have 262,144 entries."""

from collections.abc import Iterator

import numpy as np

MAX_LOGIT_BYTES = 256 * 2**20
"""Bytes of float32 logits that a model computes at once."""
MAX_PROBABILITIES = 2**22
"""Elements that are in float64 at once."""


def tiles(windows: int, positions: int, vocabulary: int) -> Iterator[tuple[slice, slice]]:
    """Slices of windows and positions that cover all of them, with at most ``MAX_LOGIT_BYTES`` of float32 logits each.

    The logits of one token are never divided.
    """
    tokens = max(1, MAX_LOGIT_BYTES // (4 * vocabulary))
    rows, columns = max(1, tokens // positions), min(positions, tokens)
    for row in range(0, windows, rows):
        for column in range(0, positions, columns):
            yield slice(row, min(row + rows, windows)), slice(column, min(column + columns, positions))


def log_probabilities(*logits: np.ndarray) -> Iterator[tuple[slice, list[np.ndarray]]]:
    """Log-probabilities of several models' logits, float32 ``(tokens, vocabulary)`` each, a few tokens at a time.

    Yields the slice of tokens and one float64 ``(some tokens, vocabulary)`` for each model.
    """
    tokens, vocabulary = logits[0].shape
    step = max(1, MAX_PROBABILITIES // vocabulary)
    for start in range(0, tokens, step):
        part = slice(start, min(start + step, tokens))
        yield part, [log_softmax(each[part]) for each in logits]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Logarithms of the probabilities, float64, over the last axis."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted


def kl_divergence(expected: np.ndarray, actual: np.ndarray) -> np.ndarray:
    """Kullback-Leibler divergence of ``actual`` from ``expected``, in nats, float64 ``(tokens,)``.

    Args:
        expected: log-probabilities, float64 ``(tokens, vocabulary)``.
        actual: same shape.
    """
    return np.einsum("tv,tv->t", np.exp(expected), expected - actual)


def cross_entropy(log_probabilities: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Cross entropy of the target tokens in nats, float64 ``(tokens,)``. targets: int64 ``(tokens,)``."""
    return -np.take_along_axis(log_probabilities, targets[:, None], axis=-1)[:, 0]
