"""What is exported computes in other people's code what it computes in ours."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from safetensors.torch import load_file

import gs_schemas
from gs_compressed_tensors.packing import pack_rows, unpack_rows
from gs_core import CheckpointError, evaluate, numerics

W8A8_MLP = {"overrides": [{"match": "*.mlp.*", "scheme": "W8A8", "algorithms": ["rtn"]}]}
INT3 = {"scheme": {"weights": {"format": "int3", "granularity": "group", "group_size": 128}}}
ASYMMETRIC_CHANNEL = {"scheme": {"weights": {"format": "int4", "granularity": "channel", "symmetric": False}}}
GROUP_32 = {"scheme": {"weights": {"format": "int4", "granularity": "group", "group_size": 32}}}


@pytest.mark.parametrize(
    ("model", "recipe", "changes", "flags"),
    [
        ("tiny-llama", "w4a16-gptq", {}, ()),
        ("tiny-llama", "w4a16-rtn", GROUP_32, ()),
        ("tiny-llama", "w4a16-gptq", INT3, ()),
        ("tiny-llama", "w4a16-asym-rtn", {}, ()),
        ("tiny-llama", "w4a16-asym-rtn", ASYMMETRIC_CHANNEL, ()),
        ("tiny-llama", "w8a8-rtn", {}, ()),
        ("tiny-llama", "w4a16-rtn", W8A8_MLP, ()),
        ("tiny-llama-outliers", "w8a8-smoothquant", {}, ()),
        ("tiny-llama-outliers", "w8a8-static-smoothquant", {}, ()),
        ("tiny-llama", "w4a16-kv8-gptq", {}, ()),
    ],
    ids=[
        "w4a16",
        "group-32",
        "w3a16",
        "asymmetric",
        "asymmetric-channel",
        "w8a8",
        "mixed",
        "w8a8-smooth",
        "w8a8-static-smooth",
        "w4a16-kv8",
    ],
)
def test_transformers_computes_what_we_compute(exported, data, transformers_perplexity, model, recipe, changes, flags):
    folder = exported(model, recipe, **changes)
    ours = evaluate(folder, data.evaluation).perplexity
    theirs = transformers_perplexity(folder, *flags)
    print(f"ours {ours:.4f}, theirs {theirs:.4f}")
    assert theirs == pytest.approx(ours, rel=0.005)
    assert 14.62 < theirs < (15.1 if changes is INT3 else 14.9)


@pytest.mark.parametrize("recipe", ["w8a16-rtn", "w2a16-gptq", "w4a4-rtn", "w8a16-kv-fp8-rtn"])
def test_every_other_kind_of_preset_opens_in_transformers_as_its_report_says(
    exported, data, transformers_perplexity, recipe
):
    folder = exported("tiny-llama", recipe)
    engines = json.loads((folder / "gsq_report.json").read_text())["engines"]
    assert [engine["opens"] for engine in engines if engine["name"].startswith("transformers")] == [True]
    ours = evaluate(folder, data.evaluation).perplexity
    assert transformers_perplexity(folder) == pytest.approx(ours, rel=0.005)


def test_mixed_schemes_with_zero_points_do_not_open_in_transformers_and_the_report_says_so(exported, engine, windows):
    beside = {"overrides": [{"match": "*.mlp.*", "scheme": "W8A16", "algorithms": ["rtn"]}]}
    folder = exported("tiny-llama", "w4a16-asym-rtn", **beside)
    report = json.loads((folder / "gsq_report.json").read_text())
    assert report["engines"][0]["opens"] is False
    with pytest.raises(AssertionError, match="weight_zero_point"):
        engine("transformers_perplexity.py", folder, windows)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "recipe", "changes", "flags"),
    [
        ("tiny-llama-outliers", "w4a4-hadamard-gptq", {}, ("--transforms",)),
        ("tiny-llama-outliers", "w8a8-rtn", {"algorithms": ["hadamard", "rtn"]}, ()),
    ],
    ids=["R1, R2 and R4", "R1 and R2"],
)
def test_rotated_models_compute_the_same_too(exported, data, transformers_perplexity, model, recipe, changes, flags):
    """Folded rotations are ordinary weights; the one that is left to be computed is computed by the library."""
    folder = exported(model, recipe, **changes)
    ours, theirs = evaluate(folder, data.evaluation).perplexity, transformers_perplexity(folder, *flags)
    print(f"ours {ours:.4f}, theirs {theirs:.4f}")
    assert theirs == pytest.approx(ours, rel=0.005)
    assert ours <= (15.05 if flags else 14.65)
    config = json.loads((folder / "config.json").read_text())
    transforms = config["quantization_config"].get("transform_config", {"config_groups": {}})["config_groups"]
    assert [group["head_dim"] for group in transforms.values()] == ([512] if flags else [])


@pytest.mark.parametrize("granularity", ["tensor", "head"])
def test_transformers_reads_keys_and_values_back_as_we_do(exported, data, transformers_perplexity, granularity):
    """With nothing but the cache quantized, both compute the same float products: to the last digits."""
    scheme = {"kv_cache": {"format": "fp8_e4m3", "granularity": granularity}}
    folder = exported("tiny-llama", "kv-fp8", scheme=scheme)
    ours = evaluate(folder, data.evaluation).perplexity
    assert transformers_perplexity(folder) == pytest.approx(ours, rel=1e-6)
    assert 14.64 < ours < 14.66


def test_transformers_refuses_a_folder_whose_transforms_it_would_ignore(exported):
    """Without R4 the predictions of the folder would be meaningless."""
    from transformers import AutoModelForCausalLM

    folder = exported("tiny-llama", "w4a4-hadamard")
    with pytest.raises(ValueError, match="quant_method"):
        AutoModelForCausalLM.from_pretrained(folder)


def test_a_folder_without_its_transforms_is_not_evaluated(exported, data, tmp_path):
    folder = shutil.copytree(exported("tiny-llama", "w4a4-hadamard"), tmp_path / "copy")
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]["transform_config"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="no transform_config"):
        evaluate(folder, data.evaluation)


def test_the_library_rotates_queries_and_keys_as_we_do(exported, data, transformers_perplexity):
    """R3: what we take back to unrotated keys after the cache is there the product of rotated queries and keys."""
    scheme = {"kv_cache": {"format": "int8", "granularity": "head"}}
    rotated = {"hadamard": {"r1": False, "r2": False, "r3": True}}
    folder = exported("tiny-llama", "kv8", scheme=scheme, algorithms=[rotated, "kv_cache"])
    ours = evaluate(folder, data.evaluation).perplexity
    assert transformers_perplexity(folder, "--transforms") == pytest.approx(ours, rel=1e-5)
    assert 14.62 < ours < 14.64


# --- words of packed codes, by the library that defined them -----------------------------------------------------


@pytest.fixture
def codes(bits: int) -> np.ndarray:
    """Every code there is, in rows that do not fill their last word."""
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    random = np.random.default_rng(bits).integers(low, high + 1, (21, 37), np.int8)
    every = np.resize(np.arange(low, high + 1), (8, 37)).astype(np.int8)
    return np.concatenate([every, random])


@pytest.mark.parametrize("bits", range(2, 9))
def test_words_are_those_of_the_library(codes, bits):
    theirs = pack_to_int32(torch.from_numpy(codes), bits)
    np.testing.assert_array_equal(pack_rows(codes, bits), theirs.numpy())
    np.testing.assert_array_equal(unpack_rows(theirs.numpy(), bits, codes.shape[1]), codes)


@pytest.mark.parametrize("bits", range(2, 9))
def test_zero_points_are_packed_as_the_library_packs_along_the_output_features(codes, bits):
    theirs = pack_to_int32(torch.from_numpy(codes), bits, packed_dim=0)
    np.testing.assert_array_equal(pack_rows(np.ascontiguousarray(codes.T), bits).T, theirs.numpy())


@pytest.mark.parametrize("recipe", ["w4a16-rtn", "w4a16-asym-rtn", "w8a16-rtn"])
def test_the_library_unpacks_an_exported_layer_to_the_codes_of_rounding(exported, data, recipe):
    """Names, shapes and bits of a file, read with nothing of ours, against numerics alone."""
    name = "model.layers.2.mlp.down_proj"
    stored = load_layer(exported("tiny-llama", recipe), name)
    args = gs_schemas.recipe(recipe).scheme.weights
    source = load_layer(data.model("tiny-llama"), name)["weight"].float().numpy()
    wanted = numerics.quantize_weight(source, args, "bfloat16")

    shape = torch.Size(stored["weight_shape"].tolist())
    codes = unpack_from_int32(stored["weight_packed"], args.bits, shape)
    np.testing.assert_array_equal(codes.numpy(), wanted.codes)
    np.testing.assert_array_equal(stored["weight_scale"].float().numpy(), wanted.scale.astype(np.float32))
    if not args.symmetric:
        shape = torch.Size(stored["weight_scale"].shape)
        zero_points = unpack_from_int32(stored["weight_zero_point"], args.bits, shape, packed_dim=0)
        np.testing.assert_array_equal(zero_points.numpy(), wanted.zero_point)


def load_layer(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """The tensors of one layer by their suffixes, read by the safetensors library."""
    return {n.removeprefix(f"{name}."): t for n, t in load_folder(folder).items() if n.startswith(f"{name}.")}


def load_folder(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


# --- the folder --------------------------------------------------------------------------------------------------


def test_everything_else_of_the_source_folder_is_carried_over(exported, data):
    source, out = data.model("tiny-llama"), exported("tiny-llama", "w8a8-rtn")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (out / name).read_bytes() == (source / name).read_bytes()
    config = json.loads((out / "config.json").read_text())
    del config["quantization_config"]
    assert config == json.loads((source / "config.json").read_text())


def test_what_is_not_quantized_has_the_bytes_of_the_source(exported, data):
    out, source = exported("tiny-llama", "w4a16-gptq"), data.model("tiny-llama")
    for name in ("model.embed_tokens", "model.norm", "model.layers.0.input_layernorm"):
        ours, theirs = load_layer(out, name), load_layer(source, name)
        assert ours.keys() == theirs.keys() == {"weight"}
        assert ours["weight"].dtype == torch.bfloat16 and torch.equal(ours["weight"], theirs["weight"])


def test_the_index_names_every_tensor_and_its_size(exported):
    folder = exported("tiny-llama", "w4a16-gptq")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    shards = {file.name: load_file(file) for file in folder.glob("*.safetensors")}
    assert index["weight_map"] == {name: file for file, tensors in shards.items() for name in tensors}
    assert index["metadata"]["total_size"] == sum(t.nbytes for tensors in shards.values() for t in tensors.values())
    assert len(shards) == 5  # one for each of four blocks, and one for what lies outside them
