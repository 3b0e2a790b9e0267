"""A folder whose recipe needs no data is quantized from file to file, and MindSpore is not even imported."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gs_core import CheckpointError, PlanError, numerics, plan, quantize
from gs_core.arrays import from_raw
from gs_core.storage import Checkpoint, write_ckpt
from gs_mindformers import MindFormers
from gs_mindformers.names import to_mindformers
from gs_schemas import Recipe

RECIPE = Recipe.parse({"algorithms": ["rtn"], "scheme": {"weights": {"format": "int8"}}})
WITH_DATA = Recipe.parse({"algorithms": ["gptq"], "scheme": {"weights": {"format": "int8"}}})
YAML = """
model:
  arch: {type: LlamaForCausalLM}
  model_config:
    type: LlamaConfig
    vocab_size: 96
    hidden_size: 64
    intermediate_size: 96
    num_layers: 2
    num_heads: 4
    n_kv_heads: 2
    seq_length: 128
    rms_norm_eps: 1.0e-5
"""


@pytest.fixture
def ckpt_folder(llama_folder: Path, tmp_path: Path) -> Path:
    """The same model as MindFormers keeps it: a .ckpt with its own names, and a .yaml."""
    folder = tmp_path / "mindformers"
    folder.mkdir()
    tensors = {to_mindformers(name): tensor for name, tensor in Checkpoint(llama_folder).tensors.items()}
    write_ckpt(folder / "llama.ckpt", tensors.items())
    (folder / "predict_llama.yaml").write_text(YAML)
    return folder


def test_weights_are_rounded_as_anywhere(llama_folder, tmp_path):
    quantize(llama_folder, RECIPE, tmp_path / "out", adapter=MindFormers())
    before, after = Checkpoint(llama_folder), Checkpoint(tmp_path / "out")
    name = "model.layers.1.self_attn.k_proj"
    weight = from_raw(before[f"{name}.weight"].read()).astype(np.float32)
    wanted = numerics.quantize_weight(weight, RECIPE.scheme.weights, "bfloat16")
    packed = from_raw(after[f"{name}.weight_packed"].read())
    assert np.array_equal(packed.view(np.uint8).astype(np.int16) - 128, wanted.codes)
    assert np.array_equal(from_raw(after[f"{name}.weight_scale"].read()), wanted.scale)
    assert after["lm_head.weight"].read().data.tobytes() == before["lm_head.weight"].read().data.tobytes()


def test_a_ckpt_gives_the_same_codes_under_its_own_names(llama_folder, ckpt_folder, tmp_path):
    for folder in (llama_folder, ckpt_folder):
        quantize(folder, RECIPE, tmp_path / "out" / folder.name, adapter=MindFormers())
    theirs, ours = (Checkpoint(tmp_path / "out" / folder.name) for folder in (llama_folder, ckpt_folder))
    assert {to_mindformers(name) for name in theirs.tensors} == set(ours.tensors)
    for name, tensor in theirs.tensors.items():
        assert tensor.read().data.tobytes() == ours[to_mindformers(name)].read().data.tobytes(), name


def test_mindspore_is_not_imported(llama_folder, tmp_path):
    script = (
        "import sys; sys.modules['mindspore'] = sys.modules['mindformers'] = None\n"
        "from gs_core import quantize; from gs_mindformers import MindFormers\n"
        f"quantize({str(llama_folder)!r}, 'w8a16-rtn', {str(tmp_path / 'out')!r}, adapter=MindFormers())"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr[-2000:]


def test_layers_sites_and_blocks_are_those_of_a_llama(llama_folder):
    model = MindFormers().open(llama_folder, "cpu")
    assert model.blocks == ["model.layers.0", "model.layers.1"]
    names = [info.name.removeprefix("model.layers.0.") for info in model.layers if info.block == 0]
    assert names == [
        *(f"self_attn.{name}_proj" for name in "qkvo"),
        *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
    ]
    first = model.layers[0]
    assert (first.site, first.alias) == ("model.layers.0.self_attn.q_proj.input", "model.layers.0.attention.wq")
    assert model.kept == {"model.embed_tokens": "outside the decoder blocks", "lm_head": "outside the decoder blocks"}


def test_another_architecture_is_quantized_without_data(llama_folder, tmp_path):
    folder = shutil.copytree(llama_folder, tmp_path / "other")
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"llama"', '"telechat"'))
    quantize(folder, RECIPE, tmp_path / "out", adapter=MindFormers())
    same = quantize(llama_folder, RECIPE, tmp_path / "llama", adapter=MindFormers())
    assert len(same.layers) == 14
    files = [Checkpoint(tmp_path / name) for name in ("out", "llama")]
    assert {n: t.read().data.tobytes() for n, t in files[0].tensors.items()} == {
        n: t.read().data.tobytes() for n, t in files[1].tensors.items()
    }


def test_another_architecture_cannot_be_run_and_says_what_to_do(llama_folder, tmp_path):
    folder = shutil.copytree(llama_folder, tmp_path / "other")
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"llama"', '"telechat"'))
    tokens = np.zeros((2, 8), np.int64)
    with pytest.raises(CheckpointError, match=r"'telechat'.*quantize that"):
        quantize(folder, WITH_DATA, tmp_path / "out", calibration=tokens, samples=2, seq_len=8, adapter=MindFormers())


@pytest.mark.parametrize(("file", "said"), [("config.json", "config"), ("model.safetensors", "ckpt")])
def test_a_folder_that_lacks_something_is_refused(llama_folder, tmp_path, file, said):
    folder = shutil.copytree(llama_folder, tmp_path / "part")
    (folder / file).unlink()
    assert said in (MindFormers().refuses(folder) or "")


def test_a_layer_that_is_missing_is_named(llama_folder, tmp_path):
    folder = shutil.copytree(llama_folder, tmp_path / "torn")
    tensors = dict(Checkpoint(llama_folder).tensors)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    (folder / "model.safetensors").unlink()
    write_ckpt(folder / "model.ckpt", tensors.items())
    with pytest.raises(CheckpointError, match=r"layers\.1\.feed_forward\.w3"):
        plan(folder, RECIPE, adapter=MindFormers())


def test_an_override_that_matches_nothing_is_an_error(llama_folder):
    recipe = Recipe.parse(RECIPE.model_dump(mode="json") | {"overrides": [{"match": "*.wq", "scheme": "W8A16"}]})
    with pytest.raises(PlanError, match="matches no layer"):
        plan(llama_folder, recipe, adapter=MindFormers())
