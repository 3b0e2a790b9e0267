"""A model whose outliers are one-sided, as OPT's are: Outlier Suppression+ against the others, in transformers."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, OPTConfig, OPTForCausalLM

from gs_core import quantize
from gs_schemas import SCHEMES, Recipe

TOKENS = np.random.default_rng(0).integers(3, 96, (16, 32))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Random weights; in the biases of the norms two channels are far off centre, one up and one down."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 96, "vocab_size": 96}
    model = OPTForCausalLM(OPTConfig(**sizes, word_embed_proj_dim=64, max_position_embeddings=128)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".layers." in name and name.endswith("layer_norm.bias"):
                parameter[5], parameter[40] = 30.0, -50.0
            elif parameter.ndim > 1:
                parameter.normal_(0, parameter.shape[-1] ** -0.5)
    folder = tmp_path_factory.mktemp("opt") / "model"
    model.save_pretrained(folder)
    return folder


def logits(folder) -> torch.Tensor:
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(torch.from_numpy(TOKENS)).logits


def test_shift_and_scale_beat_scale_alone_where_outliers_are_one_sided(model, tmp_path):
    wanted, errors = logits(model), {}
    for name in ("rtn", "smoothquant", "osp"):
        algorithms = [name] if name == "rtn" else [name, "rtn"]
        recipe = Recipe.model_validate({"scheme": SCHEMES["W8A8_STATIC"], "algorithms": algorithms})
        quantize(model, recipe, tmp_path / name, calibration=TOKENS, samples=16, seq_len=32)
        errors[name] = float((logits(tmp_path / name) - wanted).square().mean() / wanted.square().mean())
    print(errors)
    assert errors["osp"] < 0.5 * errors["smoothquant"] < errors["rtn"]
