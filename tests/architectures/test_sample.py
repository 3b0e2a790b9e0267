"""A sample of the sweep over every architecture: one of each way to build a decoder."""

from pathlib import Path

import numpy as np
import pytest
import sweep
import tiny
from transformers import logging

# Grouped heads, parallel blocks, LayerNorm with biases, 1 + w norms, fused qkv, alibi, experts in three layouts,
# latent attention, a state-space mixer, shared key-value layers (a single block), an encoder's stack used as decoder.
SAMPLE = (
    "llama", "gptj", "opt", "gemma2", "gpt_neox", "bloom", "mixtral", "gpt_oss", "granitemoe", "deepseek_v3", "mamba2",
    "bert", "xlm",
)  # fmt: skip


@pytest.mark.parametrize("recipe", sweep.RECIPES)
@pytest.mark.parametrize("name", SAMPLE)
def test_an_architecture_goes_through_with_no_code_naming_it(name: str, recipe: str, tmp_path: Path) -> None:
    logging.disable_progress_bar()
    model = tiny.make(name)
    model.save_pretrained(tmp_path / "model")
    tokens = np.random.default_rng(0).integers(3, 250, (sweep.SAMPLES, sweep.SEQ_LEN), dtype=np.int64)
    result = sweep.go_through(type(model), recipe, tmp_path / "model", tokens)
    assert result.startswith("ok"), result
