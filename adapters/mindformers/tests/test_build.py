"""The network that is built of a folder computes what Hugging Face's model of that configuration does."""

import json
import shutil

import numpy as np
import pytest

from gs_core import CheckpointError
from gs_core.arrays import from_raw
from gs_core.storage import Checkpoint, write_safetensors
from gs_mindformers import MindFormers

QKV = [f"self_attn.{name}_proj" for name in "qkv"]
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
CASES = {
    "llama": ({}, []),
    "llama with biases": ({"attention_bias": True}, [*QKV, "self_attn.o_proj"]),
    "llama 3": ({"rope_scaling": LLAMA3}, []),
    "qwen2": ({"model_type": "qwen2", "use_sliding_window": False, "rope_theta": 1e6}, QKV),
}


@pytest.fixture
def changed(llama_folder, tmp_path):
    """``(config, biased)``: the Llama's folder with other values in its configuration, and with biases."""

    def change(config, biased=()):
        folder, random = shutil.copytree(llama_folder, tmp_path / "changed"), np.random.default_rng(1)
        known = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(known | config))
        tensors = {name: from_raw(tensor.read()) for name, tensor in Checkpoint(folder).tensors.items()}
        for name in [name for name in tensors if any(f".{module}." in name for module in biased)]:
            bias = random.standard_normal(len(tensors[name])).astype(np.float32)
            tensors[name.replace(".weight", ".bias")] = bias
        write_safetensors(folder / "model.safetensors", tensors.items())
        return folder

    return change


def first_block(folder, tokens):
    """``(batch, length, hidden)`` after the first block of a Llama, in float64: four heads of 16, two of keys."""
    config = json.loads((folder / "config.json").read_text())
    weights = {n: from_raw(t.read()).astype(np.float64) for n, t in Checkpoint(folder).tensors.items()}

    def norm(x, name):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * weights[f"model.layers.0.{name}.weight"]

    def linear(x, name):
        name = f"model.layers.0.{name}"
        return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0)

    def heads(x):
        return x.reshape(*tokens.shape, -1, 16).transpose(0, 2, 1, 3)

    def rotated(x):
        frequencies = config.get("rope_theta", 1e4) ** -(np.arange(8) / 8)
        if "rope_scaling" in config:  # Llama 3: long waves are stretched, short ones are not, between them both
            waves = 32 * frequencies / (2 * np.pi)  # in the original context
            share = np.clip((waves - 1.0) / (4.0 - 1.0), 0, 1)
            frequencies = (1 - share) * frequencies / 8 + share * frequencies
        angles = np.arange(tokens.shape[1])[:, None] * np.tile(frequencies, 2)
        return x * np.cos(angles) + np.concatenate([-x[..., 8:], x[..., :8]], -1) * np.sin(angles)

    x = weights["model.embed_tokens.weight"][tokens]
    n = norm(x, "input_layernorm")
    query, key, value = (heads(linear(n, name)) for name in QKV)
    key, value = (y.repeat(2, axis=1) for y in (rotated(key), value))
    scores = rotated(query) @ key.transpose(0, 1, 3, 2) / 4
    shares = np.where(np.tri(tokens.shape[1], dtype=bool), np.exp(scores), 0)
    mixed = (shares / shares.sum(-1, keepdims=True)) @ value
    x = x + linear(mixed.transpose(0, 2, 1, 3).reshape(x.shape), "self_attn.o_proj")
    n = norm(x, "post_attention_layernorm")
    gate = linear(n, "mlp.gate_proj")
    return x + linear(gate / (1 + np.exp(-gate)) * linear(n, "mlp.up_proj"), "mlp.down_proj")


@pytest.mark.lane
@pytest.mark.parametrize("case", CASES)
def test_it_is_that_model(mindspore, changed, tokens, case):
    folder = changed(*CASES[case])
    found = MindFormers().open(folder, "cpu").block(0, (tokens, None)).run(tokens, None)["hidden"]
    assert np.allclose(found, first_block(folder, tokens), atol=2e-4)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"model_type": "telechat"}, r"of a 'telechat' here, only of llama and qwen2"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, r"positions scaled by 'linear'"),
        ({"rope_parameters": {"rope_type": "yarn"}}, r"positions scaled by 'yarn'"),
        ({"model_type": "qwen2", "use_sliding_window": True}, r"a sliding window"),
        ({"mlp_bias": True, "hidden_act": "gelu"}, r"biases in the MLP and the activation 'gelu'"),
        ({"head_dim": 32}, r"heads of 32"),
    ],
)
def test_what_cannot_be_built_says_why_and_what_to_do(changed, tokens, config, why):
    model = MindFormers().open(changed(config), "cpu")
    with pytest.raises(CheckpointError, match=f"{why}.*load the checkpoint into the network yourself"):
        model.block(0, (tokens, None))


@pytest.mark.lane
def test_a_weight_that_the_network_has_no_place_for_is_an_error(mindspore, changed, tokens):
    model = MindFormers().open(changed({}, QKV), "cpu")
    with pytest.raises(CheckpointError, match=r"no place for model\.layers\.0\.attention\.wq\.bias"):
        model.block(0, (tokens, None))
