"""What tests across the rooms share: the bundled models, folders quantized once, and engines in processes of their own.

Frameworks are imported inside the fixtures: the tests of packaging run without them.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

# Before torch is imported, here and in what this process starts: two busy pools of threads on a small machine
# spend most of their time waiting for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

TESTS = Path(__file__).parent
sys.path.insert(0, str(TESTS))  # for `models`
SAMPLES, SEQ_LEN, WINDOWS = 128, 256, 64
"""Calibration and evaluation of every measured number: 128 x 256 and 64 x 256 tokens."""


@dataclass(frozen=True)
class Data:
    """The bundled models and texts."""

    folder: Path = TESTS / "data"

    @property
    def calibration(self) -> Path:
        return self.folder / "calibration.txt"

    @property
    def evaluation(self) -> Path:
        return self.folder / "evaluation.txt"

    def model(self, name: str) -> Path:
        return self.folder / name


@pytest.fixture(scope="session")
def data() -> Data:
    return Data()


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct, a real Llama, in bfloat16."""
    from models.smollm2 import smollm2

    return smollm2()


@pytest.fixture(scope="session")
def gemma_shaped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of Gemma 3's shape, with massive activations."""
    from models.gemma_shaped import gemma_shaped

    return gemma_shaped(tmp_path_factory.mktemp("models") / "gemma-shaped")


@pytest.fixture(scope="session")
def exported(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``(model, recipe, **changes)``: the folder that ``quantize`` writes, made once in a session.

    ``recipe`` is a preset's name; ``changes`` are other values for fields of it.
    """
    from gs_core import quantize
    from gs_schemas import Recipe, recipe

    made: dict[str, Path] = {}

    def export(model: str, name: str, **changes: Any) -> Path:
        asked = Recipe.parse(recipe(name).model_dump(mode="json") | changes)
        key = f"{model} {asked.to_json()}"
        if key not in made:
            folder = tmp_path_factory.mktemp(f"{model}-{name}")
            texts = {"calibration": data.calibration, "samples": SAMPLES, "seq_len": SEQ_LEN}
            quantize(data.model(model), asked, folder, **texts)
            made[key] = folder
        return made[key]

    return export


@pytest.fixture(scope="session")
def tokens(data: Data) -> np.ndarray:
    """The token ids of the evaluation text, as the model's own tokenizer makes them."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(data.model("tiny-llama"), local_files_only=True)
    text = data.evaluation.read_text(encoding="utf-8")
    return np.array(tokenizer(text, add_special_tokens=False)["input_ids"])


@pytest.fixture(scope="session")
def windows(tokens: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 64 windows of 256 tokens, for a script to read."""
    path = tmp_path_factory.mktemp("windows") / "windows.npy"
    np.save(path, tokens[: WINDOWS * SEQ_LEN].reshape(WINDOWS, SEQ_LEN))
    return path


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """``(script, *arguments, python=this one)``: what a script of ``lanes/`` prints on its last line, as data."""

    def run(script: str, *arguments: Any, python: Path | str = sys.executable) -> Any:
        command = [str(part) for part in (python, TESTS / "lanes" / script, *arguments)]
        cwd = tmp_path_factory.mktemp("cwd")  # MindFormers leaves logs where it is imported
        ran = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=os.environ | {"PYTHONPATH": ""})
        assert ran.returncode == 0, f"{' '.join(command)}\n{ran.stderr[-3000:]}"
        return json.loads(ran.stdout.splitlines()[-1])

    return run


@pytest.fixture(scope="session")
def transformers_perplexity(engine: Callable[..., Any], windows: Path) -> Callable[..., float]:
    """``(folder, *flags)``: perplexity in transformers with compressed-tensors, nothing of ours imported."""
    known: dict[tuple[Any, ...], float] = {}

    def measure(folder: Path, *flags: str) -> float:
        if (folder, flags) not in known:
            known[folder, flags] = engine("transformers_perplexity.py", folder, windows, *flags)["perplexity"]
        return known[folder, flags]

    return measure
