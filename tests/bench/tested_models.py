"""The models of the accuracy table, and how many tokens each is calibrated and evaluated with."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from measuring import HERE

DATA = HERE.parent / "data"
sys.path.insert(0, str(HERE.parent))  # for `models`


@dataclass(frozen=True)
class BenchModel:
    """A model of the accuracy table.

    Attributes:
        folder: returns the model's folder; its argument is a folder to make the model in.
        samples, windows: number of calibration samples and evaluation windows of 256 tokens.
        group_size: group size of weights of three and four bits.
        rows: rows of the table that are measured; empty for all.
    """

    folder: Callable[[Path], Path]
    samples: int = 128
    windows: int = 64
    group_size: int = 128
    rows: tuple[str, ...] = ()


def _smollm2(work: Path) -> Path:
    from models.smollm2 import smollm2

    return smollm2()


def _gemma_shaped(work: Path) -> Path:
    from models.gemma_shaped import gemma_shaped

    return gemma_shaped(work / "gemma-shaped")


MODELS = {
    "tiny-llama": BenchModel(lambda work: DATA / "tiny-llama"),
    "tiny-llama-outliers": BenchModel(lambda work: DATA / "tiny-llama-outliers"),
    "SmolLM2-135M": BenchModel(_smollm2, samples=32, windows=32, group_size=64),
    "Gemma-shaped": BenchModel(_gemma_shaped, samples=32, windows=32, rows=("W8A8 dynamic", "W8A8 static")),
}
