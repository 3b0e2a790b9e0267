"""Folders whole or in shards, live modules, every float dtype: the same model; and one line for what is none."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from gs_core import CheckpointError, PlanError, numerics, plan, quantize
from gs_core.storage import Checkpoint
from gs_hf import HuggingFace
from gs_schemas import Recipe

INT8 = Recipe.parse({"scheme": {"weights": {"format": "int8"}}, "algorithms": ["rounding"], "format": "plain"}, "test")


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


def same(left: Path, right: Path) -> bool:
    one, other = tensors(left), tensors(right)
    return one.keys() == other.keys() and all(
        one[n].dtype == other[n].dtype and torch.equal(one[n], other[n]) for n in one
    )


# --- the same model from everywhere ------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "opt", "mixtral"])
def test_shards_and_a_live_model_give_the_layers_and_bytes_of_one_file(build, saved, opened, plugins, tmp_path, family):
    whole, shards, live = saved(family, "bfloat16"), saved(family, "bfloat16", "50KB"), build(family, "bfloat16")
    assert len(list(shards.glob("*.safetensors"))) > 2 and (shards / "model.safetensors.index.json").is_file()
    assert opened(whole).layers == opened(shards).layers == opened(live).layers
    for name, source in (("whole", whole), ("shards", shards), ("live", live)):
        quantize(source, INT8, tmp_path / name)
    assert same(tmp_path / "whole", tmp_path / "shards")
    assert same(tmp_path / "whole", tmp_path / "live")
    configs = [json.loads((tmp_path / name / "config.json").read_text()) for name in ("whole", "shards", "live")]
    assert configs[0] == configs[1] == configs[2]


class Attention(torch.nn.Module):
    """Enough of it to be a decoder: one head."""

    def __init__(self, size: int):
        super().__init__()
        self.qkv, self.out = torch.nn.Linear(size, 3 * size), torch.nn.Linear(size, size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.out(torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True))


class Layer(torch.nn.Module):
    def __init__(self, size: int):
        super().__init__()
        self.norm, self.attention, self.up = torch.nn.LayerNorm(size), Attention(size), torch.nn.Linear(size, 96)
        self.down = torch.nn.Linear(96, size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm(x))
        return x + self.down(self.up(x).relu())


class Homemade(torch.nn.Module):
    """A model that transformers has never heard of."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = torch.nn.Embedding(96, 64), torch.nn.Linear(64, 96)
        self.layers = torch.nn.ModuleList(Layer(64) for _ in range(2))

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.embed

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


@pytest.fixture
def homemade() -> Homemade:
    torch.manual_seed(0)
    return Homemade().eval()


def test_a_module_of_ones_own_is_quantized(homemade, opened, plugins, tokens, tmp_path):
    model = opened(homemade)
    assert [site.layers for site in model.block(0, (tokens, None)).sites.values()] == [
        (f"layers.0.{name}",) for name in ("attention.qkv", "attention.out", "up", "down")
    ]
    quantize(homemade, INT8, tmp_path / "out")
    found = tensors(tmp_path / "out")
    for name, parameter in homemade.named_parameters():
        if name.startswith("layers.") and parameter.ndim == 2:
            wanted = numerics.quantize_weight(parameter.detach(), INT8.scheme.weights, "float32")
            layer = name.removesuffix(".weight")
            assert torch.equal(found[f"{layer}.codes"], wanted.codes)
            assert torch.equal(found[f"{layer}.scale"], wanted.scale)
        else:
            assert torch.equal(found[name], parameter)


def test_a_live_module_is_left_as_it_was(homemade, plugins, tmp_path):
    before = {name: value.clone() for name, value in homemade.state_dict().items()}
    quantize(homemade, INT8, tmp_path / "out")
    assert homemade.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in homemade.state_dict().items())


def test_a_live_module_is_told_by_its_weights(homemade, opened):
    """An unfinished run goes on in another process, where the same weights are at other addresses."""
    again = Homemade()
    again.load_state_dict(homemade.state_dict())
    assert opened(homemade).fingerprint() == opened(again).fingerprint()
    with torch.no_grad():
        again.layers[1].up.weight[0, 0] += 1
    assert opened(homemade).fingerprint() != opened(again).fingerprint()


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_every_float_dtype(saved, opened, plugins, tmp_path, dtype):
    """Weights are read exactly; scales and what is not quantized keep the dtype of the source."""
    folder = saved("llama", dtype)
    layer = opened(folder).block(1, None).layers["model.layers.1.mlp.down_proj"]
    stored = tensors(folder)["model.layers.1.mlp.down_proj.weight"]
    assert layer.dtype == dtype and layer.weight().dtype == torch.float32
    assert torch.equal(layer.weight(), stored.float())
    quantize(folder, INT8, tmp_path / "out")
    found = tensors(tmp_path / "out")
    for name in ("model.layers.1.mlp.down_proj.scale", "model.norm.weight", "model.embed_tokens.weight"):
        assert found[name].dtype == getattr(torch, dtype)


# --- tied embeddings ---------------------------------------------------------------------------------------------


def test_tied_embeddings_stay_tied(saved, plugins, tmp_path):
    folder = saved("llama", "bfloat16", tie_word_embeddings=True)
    assert "lm_head.weight" not in tensors(folder)
    quantize(folder, INT8, tmp_path / "out")
    found = tensors(tmp_path / "out")
    assert "lm_head.weight" not in found
    assert torch.equal(found["model.embed_tokens.weight"], tensors(folder)["model.embed_tokens.weight"])
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is True


def test_tied_embeddings_are_the_head_when_losses_are_computed(saved, build, opened, tokens):
    from gs_core.arrays import to_raw

    changes = {"tie_word_embeddings": True, "num_hidden_layers": 1}
    model = opened(saved("llama", **changes))
    last = model.block(0, (tokens, None)).run(tokens, None)
    found = model.losses(tokens, {name: to_raw(value) for name, value in last.items()})
    ids = torch.from_numpy(tokens)
    with torch.no_grad():
        logits = build("llama", **changes)(ids, use_cache=False).logits[:, :-1]
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    np.testing.assert_allclose(found.reshape(-1), expected.numpy(), rtol=1e-4)


# --- what is no model --------------------------------------------------------------------------------------------


def line(error: pytest.ExceptionInfo) -> str:
    """The message, which must be one line."""
    assert "\n" not in str(error.value)
    return str(error.value)


def rewrite(folder: Path, change) -> None:
    """Let ``change`` edit the tensors of a folder of one file."""
    found = load_file(folder / "model.safetensors")
    change(found)
    save_file(found, folder / "model.safetensors")


@pytest.mark.parametrize("config", ["", "[]", '"llama"', "{", "{}", '{"model_type": "no-such"}', '{"model_type": 7}'])
def test_a_config_that_is_none(saved, config):
    folder = saved("llama")
    (folder / "config.json").write_text(config)
    with pytest.raises((CheckpointError, PlanError)) as error:
        HuggingFace().open(folder, "cpu")
    assert str(folder) in line(error)


@pytest.mark.parametrize(
    "field", [{"hidden_size": "many"}, {"num_attention_heads": 0}, {"hidden_act": "no-such"}, {"rope_parameters": 3}]
)
def test_a_config_with_garbage_in_a_field(saved, field):
    folder = saved("llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | field))
    with pytest.raises((CheckpointError, PlanError)) as error:
        HuggingFace().open(folder, "cpu")
    assert str(folder) in line(error)


@pytest.mark.parametrize("bytes_left", [0, 7, 500, -1])
def test_a_truncated_shard(saved, bytes_left):
    folder = saved("llama", shard="50KB")
    file = sorted(folder.glob("*.safetensors"))[1]
    data = file.read_bytes()
    file.write_bytes(data[:bytes_left])
    with pytest.raises(CheckpointError) as error:
        HuggingFace().open(folder, "cpu")
    assert file.name in line(error)


@pytest.mark.parametrize(
    "name", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight", "model.embed_tokens.weight"]
)
def test_a_missing_tensor(saved, name):
    folder = saved("llama")
    rewrite(folder, lambda found: found.pop(name))
    with pytest.raises(CheckpointError) as error:
        HuggingFace().open(folder, "cpu")
    assert name in line(error) and "incomplete" in line(error)


def test_a_tensor_of_another_shape(saved):
    folder = saved("llama")
    rewrite(folder, lambda found: found.update({"model.norm.weight": torch.ones(63)}))
    with pytest.raises(
        CheckpointError, match=r"'model.norm.weight' is \(63,\) in the checkpoint, the model has \(64,\)"
    ):
        HuggingFace().open(folder, "cpu")


def test_a_folder_of_another_architecture(saved):
    folder, other = saved("llama"), saved("opt")
    shutil.copy(other / "config.json", folder / "config.json")
    with pytest.raises(CheckpointError) as error:
        HuggingFace().open(folder, "cpu")
    assert "incomplete" in line(error)


def test_code_from_a_checkpoint_is_never_run(saved, tmp_path):
    folder = saved("llama")
    witness = tmp_path / "ran"
    (folder / "evil.py").write_text(f"open({str(witness)!r}, 'w')\nclass C: pass\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.C"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises((CheckpointError, PlanError)) as error:
        HuggingFace().open(folder, "cpu")
    assert str(folder) in line(error)
    assert not witness.exists()


def test_a_folder_without_a_config_is_for_someone_else(tmp_path):
    assert HuggingFace().refuses(tmp_path) == "the folder has no config.json"


def test_what_an_engine_wants_beside_the_weights_is_carried_over(saved, opened):
    folder = saved("llama")
    for name in ("tokenizer.json", "chat_template.jinja", "pytorch_model.bin", ".hidden", "model.gguf"):
        (folder / name).write_text("")
    (folder / "onnx").mkdir()
    assert [path.name for path in opened(folder).files()] == [
        "chat_template.jinja", "generation_config.json", "tokenizer.json",
    ]  # fmt: skip
    assert Checkpoint(folder).files == [folder / "model.safetensors"]


def test_gpt2_is_refused_because_its_weights_are_stored_transposed():
    config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=64, bos_token_id=0, eos_token_id=1)
    with pytest.raises(CheckpointError) as refused:
        plan(transformers.GPT2LMHeadModel(config), "w8a8-rtn")
    assert str(refused.value) == (
        "GPT2LMHeadModel: no layer of GPT2LMHeadModel can be quantized. transformer.h.0.attn.c_attn: its weight is "
        "stored as (in, out), as Conv1D of GPT-2 does, and engines load (out, in)"
    )


def test_t5_is_refused_because_it_is_an_encoder_and_a_decoder(tmp_path):
    config = transformers.T5Config(d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=4, vocab_size=64)
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    with pytest.raises(PlanError, match=r"an encoder-decoder model \(t5\); only decoder models are supported"):
        plan(tmp_path, "w8a8-rtn")
