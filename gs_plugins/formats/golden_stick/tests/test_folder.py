"""The files of a folder: their names, the index, and a description that engines accept."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gs_core import QuantizationScheme, StaticInput, numerics
from gs_core.interfaces import Finished, Output
from gs_core.storage import Checkpoint, read_ckpt, read_header
from gs_golden_stick import Ascend, GoldenStick, GoldenStickCkpt, GoldenStickNetwork
from gs_schemas import SCHEMES

LAYERS = {
    **{f"model.layers.0.self_attn.{p}_proj": SCHEMES["W8A8_STATIC"] for p in "qkvo"},
    **{f"model.layers.0.mlp.{p}_proj": SCHEMES["W8A8"] for p in ("gate", "up", "down")},
}
INPUT = StaticInput(np.array([0.03], np.float16), np.array([-3], np.float32))


def write(plugin: Any, folder: Path, layers: dict[str, QuantizationScheme], **config: Any) -> list[str]:
    """What the pipeline does: a part with the layers and their biases, one with what lies outside, the end."""
    random = np.random.default_rng(0)
    tensors: list[tuple[str, Any]] = []
    for name, scheme in layers.items():
        tensor = numerics.quantize_weight(random.standard_normal((64, 128)).astype("f4"), scheme.weights, "float16")
        inputs = INPUT if plugin.layout(scheme) == "W8A8" else None
        arrays = plugin.parameters(tensor, inputs, plugin.layout(scheme))
        tensors += [(f"{name}.{suffix}", array) for suffix, array in arrays.items()]
        tensors.append((f"{name}.bias", np.ones(64, np.float16)))
    outside = [("model.norm.weight", np.ones(64, np.float16)), ("model.embed_tokens.weight", np.ones((4, 64), "f2"))]
    files: list[str] = []
    for part, named in enumerate((tensors, outside)):
        files += plugin.export(output=Output(folder, part, 2, named))
    shards = {file: {n: t.nbytes for n, t in read_header(folder / file).items()} for file in files}
    final = Finished({"model_type": "llama", **config}, layers, [], [], shards, {})
    return files + plugin.export(output=Output(folder, 2, 2, final=final))


def load(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("plugin", "files"),
    [
        (GoldenStick(), ["quant-model-00001-of-00002.safetensors", "quant-model-00002-of-00002.safetensors",
                         "quantization_description.json", "model.safetensors.index.json", "config.json"]),
        (GoldenStickNetwork(), ["quant-model-00001-of-00002.safetensors", "quant-model-00002-of-00002.safetensors",
                                "quantization_description.json", "model.safetensors.index.json", "config.json"]),
        (GoldenStickCkpt(), ["quant-model-00001-of-00002.ckpt", "quant-model-00002-of-00002.ckpt",
                             "quantization_description.json", "config.json"]),
        (Ascend(), ["quant_model_weights-00001-of-00002.safetensors", "quant_model_weights-00002-of-00002.safetensors",
                    "quant_model_description.json", "quant_model_weights.safetensors.index.json", "config.json"]),
    ],
)  # fmt: skip
def test_the_files(plugin, files, tmp_path):
    assert write(plugin, tmp_path, LAYERS) == files
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(files)
    if plugin.index:
        index = load(tmp_path / plugin.index)
        assert index["weight_map"]["model.norm.weight"] == files[1]
        assert index["metadata"]["total_size"] == Checkpoint(tmp_path).nbytes


def test_files_can_be_written_again(tmp_path):
    """MindSpore's are read-only, and it cannot write over its own without changing that."""
    for plugin in (GoldenStick(), GoldenStickCkpt()):
        for file in write(plugin, tmp_path, LAYERS):
            assert (tmp_path / file).stat().st_mode & 0o600 == 0o600


@pytest.mark.parametrize("plugin", [GoldenStick(), Ascend(), GoldenStickNetwork(), GoldenStickCkpt()])
def test_every_tensor_has_a_type_and_a_layers_tensors_have_one(plugin, tmp_path):
    """vLLM-MindSpore refuses a module, or projections it fuses, of two types; MindFormers a tensor without one.

    Golden Stick gives the bias of a W8A8_DYNAMIC layer the type W4A8_DYNAMIC.
    """
    write(plugin, tmp_path, LAYERS)
    description = load(tmp_path / plugin.description)
    types = {name: description[name] for name in Checkpoint(tmp_path).tensors}
    assert types.pop("model.norm.weight") == types.pop("model.embed_tokens.weight") == "FLOAT"
    for layer, scheme in LAYERS.items():
        mine = {types.pop(name) for name in list(types) if name.startswith(f"{layer}.")}
        assert mine == {"W8A8" if scheme == SCHEMES["W8A8_STATIC"] else "W8A8_DYNAMIC"}
    assert types == {}


def test_a_tied_head_has_a_type_though_it_has_no_tensor(tmp_path):
    write(GoldenStick(), tmp_path, LAYERS)
    assert load(tmp_path / "quantization_description.json")["lm_head.weight"] == "FLOAT"


def test_what_msmodelslim_says_beside_the_types(tmp_path):
    write(Ascend(), tmp_path, LAYERS)
    theirs = load(Path(__file__).parent / "golden/msmodelslim_w8a8/quant_model_description.json")
    plain = {key for key in theirs if "." not in key}
    ours = load(tmp_path / "quant_model_description.json")
    assert {key: ours[key] for key in plain} == {key: theirs[key] for key in plain}


def test_config_json_speaks_of_no_quantization(tmp_path):
    """An engine that finds a quantization_config there reads it in place of the description."""
    write(GoldenStick(), tmp_path, LAYERS, quantization_config={"quant_method": "compressed-tensors"})
    assert load(tmp_path / "config.json") == {"model_type": "llama"}


def test_names_inside_a_network(tmp_path):
    write(GoldenStickNetwork(), tmp_path, {"layers.0.wq": SCHEMES["W8A8_STATIC"]})
    assert sorted(read_header(tmp_path / "quant-model-00001-of-00002.safetensors")) == [
        "layers.0.wq._layer.bias",
        "layers.0.wq._layer.matmul.dequant_scale",
        "layers.0.wq._layer.matmul.quant_bias",
        "layers.0.wq._layer.weight",
        "layers.0.wq.quant_op.input_scale",
        "layers.0.wq.quant_op.input_zp",
    ]


def test_ckpt_parts_join_into_one_file(tmp_path):
    files = [tmp_path / name for name in write(GoldenStickCkpt(), tmp_path, LAYERS) if name.endswith(".ckpt")]
    (tmp_path / "whole").write_bytes(b"".join(file.read_bytes() for file in files))
    assert set(read_ckpt(tmp_path / "whole")) == set(Checkpoint(tmp_path).tensors)


def test_mindspore_is_told_which_bytes_are_int4(tmp_path):
    write(GoldenStick(), tmp_path, {"model.layers.0.mlp.up_proj": SCHEMES["W4A16"]})
    head = (tmp_path / "quant-model-00001-of-00002.safetensors").read_bytes()[8:100]
    assert head.startswith(b'{"__metadata__":{"format":"ms","model.layers.0.mlp.up_proj.weight":"Int4"}')
