"""Every preset runs end to end on the first blocks of a real Llama and on a model of Gemma 3's shape. Both have massive
activations. `make presets` measures the whole models."""

import math
from pathlib import Path

import pytest

from gs_core import evaluate, quantize
from gs_schemas import RECIPES


@pytest.fixture(scope="session")
def short_smollm2(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from models.first_blocks import first_blocks

    return first_blocks(smollm2, 2, tmp_path_factory.mktemp("models") / "smollm2-2-blocks")


@pytest.fixture(scope="session")
def short_gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from models.gemma_shaped import gemma_shaped

    return gemma_shaped(tmp_path_factory.mktemp("models") / "gemma-shaped-2-blocks", blocks=2, vocabulary=2048)


@pytest.mark.slow
@pytest.mark.parametrize("preset", RECIPES)
@pytest.mark.parametrize("model", ["short_smollm2", "short_gemma"])
def test_a_preset_runs_and_its_folder_computes(model, preset, data, tmp_path, request):
    folder = request.getfixturevalue(model)
    quantize(folder, preset, tmp_path / "out", calibration=data.calibration, samples=2, seq_len=64)
    found = evaluate(tmp_path / "out", data.evaluation, windows=2, seq_len=64)
    assert math.isfinite(found.perplexity)
