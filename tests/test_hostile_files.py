"""Hostile or damaged checkpoint folders: no code from them runs, and every fault is an error."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from gs_core import CheckpointError, evaluate, quantize
from gs_core.arrays import from_raw
from gs_core.cli import app
from gs_core.storage import Checkpoint

UP, NORM = "model.layers.1.mlp.up_proj", "model.layers.1.input_layernorm"


@pytest.fixture
def model(data, tmp_path) -> Path:
    """A copy of the model, to be changed."""
    return Path(shutil.copytree(data.model("tiny-llama"), tmp_path / "model"))


@pytest.fixture(autouse=True)
def modules_cache(tmp_path, monkeypatch) -> None:
    """transformers copies code that it runs into this folder."""
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")


def gsq(*arguments: object, answer: str = "") -> Result:
    """Run the command line with ``answer`` on its standard input."""
    return CliRunner().invoke(app, list(map(str, arguments)), input=answer)


def edit(path: Path, **values: object) -> None:
    """Change entries of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


# --- code in the folder ------------------------------------------------------------------------------------------

TOKENIZER = """
import pathlib
from transformers import PreTrainedTokenizerFast
pathlib.Path({trace!r}).write_text("ran")
class Planted(PreTrainedTokenizerFast): pass
"""
MODEL = """
import pathlib
from transformers import LlamaConfig, LlamaForCausalLM
pathlib.Path({trace!r}).write_text("ran")
class PlantedConfig(LlamaConfig):
    model_type = "planted"
class PlantedForCausalLM(LlamaForCausalLM):
    config_class = PlantedConfig
"""


@pytest.fixture
def trace(tmp_path) -> Path:
    """Planted code writes this file when it runs."""
    return tmp_path / "trace"


def plant_tokenizer(model: Path, trace: Path) -> None:
    (model / "planted.py").write_text(TOKENIZER.format(trace=str(trace)))
    auto_map = {"AutoTokenizer": [None, "planted.Planted"]}
    edit(model / "tokenizer_config.json", tokenizer_class="Planted", auto_map=auto_map)


def plant_model(model: Path, trace: Path) -> None:
    (model / "planted.py").write_text(MODEL.format(trace=str(trace)))
    auto_map = {"AutoConfig": "planted.PlantedConfig", "AutoModelForCausalLM": "planted.PlantedForCausalLM"}
    edit(model / "config.json", model_type="planted", architectures=["PlantedForCausalLM"], auto_map=auto_map)


@pytest.mark.parametrize("plant", [plant_tokenizer, plant_model])
@pytest.mark.parametrize("command", ["quantize", "eval"])
def test_code_in_the_folder_does_not_run_whatever_standard_input_says(model, data, tmp_path, trace, plant, command):
    plant(model, trace)
    wanted = {
        "quantize": ["w4a16-gptq", "-o", tmp_path / "out", "--calibration", data.calibration, "--samples", 2],
        "eval": ["--text", data.evaluation, "--windows", 2],
    }
    ran = gsq(command, model, *wanted[command], "--seq-len", 32, answer="y\n" * 20)
    assert not trace.exists()
    assert ran.exit_code != 0
    assert "--trust-remote-code" in ran.stderr
    assert "Do you wish to run" not in ran.stdout + ran.stderr


@pytest.mark.parametrize("plant", [plant_tokenizer, plant_model])
def test_code_in_the_folder_runs_with_the_flag(model, data, tmp_path, trace, plant):
    plant(model, trace)
    arguments = ["--text", data.evaluation, "--windows", 2, "--seq-len", 32, "--json"]
    trusted = gsq("eval", model, *arguments, "--trust-remote-code")
    assert trusted.exit_code == 0, trusted.stderr
    assert trace.read_text() == "ran"
    usual = gsq("eval", data.model("tiny-llama"), *arguments)
    assert json.loads(trusted.stdout)["perplexity"] == json.loads(usual.stdout)["perplexity"]


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
def test_a_configuration_cannot_name_an_attention_kernel_of_the_hub(model, data, monkeypatch, key):
    from transformers import modeling_utils

    loaded: list[str] = []
    monkeypatch.setattr(modeling_utils, "lazy_import_flash_attention", lambda name, **_: loaded.append(name))
    edit(model / "config.json", **{key: "attacker/kernel"})
    found = evaluate(model, data.evaluation, windows=2, seq_len=32)
    assert not loaded
    assert found.perplexity == evaluate(data.model("tiny-llama"), data.evaluation, windows=2, seq_len=32).perplexity


# --- source weights ----------------------------------------------------------------------------------------------


def store(model: Path, change: Callable[[str, torch.Tensor], torch.Tensor | None]) -> None:
    """Write the checkpoint again with other tensors; ``None`` removes one."""
    tensors = load_file(model / "model.safetensors")
    changed = {name: change(name, tensor) for name, tensor in tensors.items()}
    save_file({name: t.contiguous() for name, t in changed.items() if t is not None}, model / "model.safetensors")


def test_float8_weights_get_float32_scales(model, data, tmp_path):
    def to_float8(name: str, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(torch.float8_e4m3fn) if name.endswith("_proj.weight") else tensor

    store(model, to_float8)
    quantize(model, "w8a16-rtn", tmp_path / "out")
    written = Checkpoint(tmp_path / "out").tensors
    scales = [tensor for name, tensor in written.items() if name.endswith("weight_scale")]
    assert scales and all(tensor.dtype == "float32" for tensor in scales)
    assert all((from_raw(tensor.read()) > 0).all() for tensor in scales)
    windows = {"windows": 4, "seq_len": 64}
    ratio = evaluate(tmp_path / "out", data.evaluation, **windows).perplexity
    ratio /= evaluate(model, data.evaluation, **windows).perplexity
    assert abs(ratio - 1) < 0.01


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32])
@pytest.mark.parametrize("name", [f"{UP}.weight", "model.embed_tokens.weight"])
def test_integer_weights_are_refused(model, tmp_path, dtype, name):
    store(model, lambda each, tensor: (100 * tensor).to(dtype) if each == name else tensor)
    with pytest.raises(CheckpointError, match=f"{name} is {str(dtype)[6:]}: integer codes without scales"):
        quantize(model, "w8a8-rtn", tmp_path / "out")


@pytest.mark.parametrize("name", ["model.norm.weight", "model.embed_tokens.weight", f"{NORM}.weight"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_copied_tensor_with_nan_or_infinity_is_refused(model, tmp_path, name, value):
    def damage(each: str, tensor: torch.Tensor) -> torch.Tensor:
        if each == name:
            tensor.view(-1)[3] = value
        return tensor

    store(model, damage)
    with pytest.raises(CheckpointError, match=f"{name}: the tensor contains NaN or infinity"):
        quantize(model, "w8a16-rtn", tmp_path / "out")


# --- quantized folders -------------------------------------------------------------------------------------------


@pytest.fixture
def quantized(data, tmp_path) -> Callable[..., Path]:
    """``(recipe, format)``: a quantized folder in one shard, to be damaged."""

    def make(recipe: str, **given: str) -> Path:
        folder = tmp_path / "out"
        quantize(data.model("tiny-llama"), recipe, folder, **given)
        tensors = {}
        for file in sorted(folder.glob("*.safetensors")):
            tensors |= load_file(file)
            file.unlink()
        for file in folder.glob("*.safetensors.index.json"):
            file.unlink()
        save_file(tensors, folder / "model.safetensors")
        return folder

    return make


def rejects(folder: Path, data: Any, *says: str) -> None:
    with pytest.raises(CheckpointError) as error:
        evaluate(folder, data.evaluation, windows=2, seq_len=32)
    assert "\n" not in str(error.value)
    assert all(what in str(error.value) for what in says), str(error.value)


def test_codes_are_not_read_as_weights_without_a_quantization_config(quantized, data):
    folder = quantized("w8a8-rtn")
    edit(folder / "config.json", quantization_config=None)
    rejects(folder, data, "quantization_config", "missing")


@pytest.mark.parametrize("format", ["golden_stick", "ascend"])
def test_codes_are_not_read_as_weights_without_a_description(quantized, data, format):
    folder = quantized("w8a8-rtn", format=format)
    for description in folder.glob("quant*_description.json"):
        description.unlink()
    rejects(folder, data, "description", "missing")


@pytest.mark.parametrize("format", ["compressed_tensors", "golden_stick", "ascend"])
def test_a_layer_without_its_scales_is_refused(quantized, data, format):
    folder = quantized("w8a8-rtn", format=format)
    store(folder, lambda name, tensor: None if name == f"{UP}.weight_scale" else tensor)
    rejects(folder, data, UP, "weight_scale")


@pytest.mark.parametrize("format", ["compressed_tensors", "golden_stick", "ascend"])
@pytest.mark.parametrize(("suffix", "dtype"), [("weight_scale", torch.int16), ("weight", torch.int16)])
def test_codes_and_scales_of_another_dtype_are_refused(quantized, data, format, suffix, dtype):
    folder = quantized("w8a8-rtn", format=format)
    store(folder, lambda name, tensor: tensor.to(dtype) if name == f"{UP}.{suffix}" else tensor)
    rejects(folder, data, f"{UP}.{suffix}", "int16")


@pytest.mark.parametrize("format", ["compressed_tensors", "golden_stick", "ascend"])
@pytest.mark.parametrize(("value", "says"), [(0, "zero"), (float("nan"), "NaN"), (-1, "negative")])
def test_scales_that_are_not_positive_numbers_are_refused(quantized, data, format, value, says):
    folder = quantized("w8a8-rtn", format=format)

    def damage(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if name == f"{UP}.weight_scale":
            tensor.view(-1)[2] = value
        return tensor

    store(folder, damage)
    rejects(folder, data, UP, says)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ([], "int8"),
        ([], [1]),
        (["config_groups"], [1]),
        (["config_groups", "group_0"], None),
        (["config_groups", "group_0", "targets"], "Linear"),
        (["config_groups", "group_0", "targets"], [None]),
        (["config_groups", "group_0", "weights"], "int8"),
        (["config_groups", "group_0", "weights", "num_bits"], "8"),
        (["config_groups", "group_0", "weights", "group_size"], {}),
        (["ignore"], [3]),
        (["kv_cache_scheme"], "fp8"),
    ],
)
def test_a_wrong_type_in_quantization_config_is_named(quantized, data, path, value):
    folder = quantized("w8a8-rtn")
    config = json.loads((folder / "config.json").read_text())
    node, keys = config, ["quantization_config", *path]
    for key in keys[:-1]:
        node = node[key]
    node[keys[-1]] = value
    (folder / "config.json").write_text(json.dumps(config))
    rejects(folder, data, ".".join(keys))


def test_a_config_that_is_nested_too_deep(model, data):
    (model / "config.json").write_text('{"quantization_config": ' + "[" * 100_000 + "]" * 100_000 + "}")
    rejects(model, data, "config.json")


# --- links and special files -------------------------------------------------------------------------------------


def test_a_link_out_of_the_model_folder_is_refused_before_the_run(model, tmp_path):
    (tmp_path / "secret").write_text("private")
    (model / "notes.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointError, match=r"notes.txt is a link to .*secret, outside the model folder"):
        quantize(model, "w8a8-rtn", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_links_of_the_hub_cache_are_followed(model, tmp_path):
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "0123", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(model.iterdir())):
        shutil.copy(file, blobs / str(number))
        (snapshot / file.name).symlink_to(Path("../../blobs") / str(number))
    (snapshot / "same.json").symlink_to("tokenizer_config.json")
    quantize(snapshot, "w8a8-rtn", tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (model / "tokenizer.json").read_bytes()


def test_a_shard_that_is_a_fifo_is_refused_at_once(model, tmp_path):
    (model / "model.safetensors").unlink()
    os.mkfifo(model / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model.safetensors: a FIFO, device or folder, not a regular file"):
        quantize(model, "w8a8-rtn", tmp_path / "out")
