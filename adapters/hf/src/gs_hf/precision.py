"""Outputs and logits to measure the error that working precision adds to a rotated model."""

from collections.abc import Callable, Iterator

import numpy as np
import torch

from gs_hf.running import Outputs


class Streams:
    """Outputs of the float model in float64 and of the rotated model in working precision, on the same few tokens."""

    def __init__(self) -> None:
        self._after: dict[int, tuple[np.ndarray, Outputs, Outputs]] = {}

    def before(self, index: int, tokens: np.ndarray) -> tuple[Outputs | None, Outputs | None] | None:
        """Inputs of a block in both models; ``None`` if the earlier blocks were not run on these tokens."""
        if index == 0:
            return None, None
        known = self._after.get(index - 1)
        return None if known is None or not np.array_equal(known[0], tokens) else known[1:]

    def after(self, index: int, tokens: np.ndarray, exact: Outputs, working: Outputs) -> None:
        """Keep the outputs of a block in both models."""
        self._after[index] = tokens, exact, working


def logits(entering: torch.Tensor, rows: Callable[[], Iterator[torch.Tensor]]) -> torch.Tensor:
    """Logits, ``(tokens, vocabulary)``, in the dtype of ``entering``.

    entering: the input of the head, ``(…, hidden)``. rows: slices of the rows of the head's weight.
    """
    x = entering.reshape(-1, entering.shape[-1]).cpu()
    return torch.cat([x @ part.to(x.dtype).T for part in rows()], -1)
