"""The error that working precision adds to a rotated model, as divergence of its predictions."""

from collections.abc import Callable, Iterator

import numpy as np
import torch

from gs_hf.running import Outputs


class Streams:
    """Outputs of the float model in float64 and of the rotated model in working precision, on the same few tokens."""

    def __init__(self) -> None:
        self._after: dict[int, tuple[np.ndarray, Outputs, Outputs]] = {}

    def before(self, index: int, tokens: np.ndarray) -> tuple[Outputs | None, Outputs | None] | None:
        """Both inputs of a block; ``None`` if the blocks before it were not run on these tokens."""
        if index == 0:
            return None, None
        known = self._after.get(index - 1)
        return None if known is None or not np.array_equal(known[0], tokens) else known[1:]

    def after(self, index: int, tokens: np.ndarray, exact: Outputs, working: Outputs) -> None:
        """Keep what a block returned."""
        self._after[index] = tokens, exact, working


def divergence(exact: torch.Tensor, working: torch.Tensor) -> float:
    """Kullback-Leibler divergence of predictions from those of ``exact``, in nats, averaged over tokens.

    Both are logits, ``(tokens, vocabulary)``, computed with in float64.
    """
    p, q = (torch.log_softmax(logits.double(), -1) for logits in (exact, working))
    return float((p.exp() * (p - q)).sum(-1).mean())


def logits(entering: torch.Tensor, rows: Callable[[], Iterator[torch.Tensor]]) -> torch.Tensor:
    """Logits from what enters the head ``(…, hidden)`` and slices of the head's rows, in the dtype of ``entering``."""
    x = entering.reshape(-1, entering.shape[-1]).cpu()
    return torch.cat([x @ part.to(x.dtype).T for part in rows()], -1)
