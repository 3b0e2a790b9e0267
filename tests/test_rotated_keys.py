"""R3 across the rooms: `hadamard` maps the keys that `kv_cache` scales, where a format can say it."""

import json

import pytest

from gs_core import PlanError, evaluate, plan, quantize
from gs_core.testing import write_distribution
from gs_schemas import Recipe

R3 = {"hadamard": {"r1": False, "r2": False, "r3": True}}
INT8 = {"kv_cache": {"format": "int8", "granularity": "tensor"}}
SCHEME = {"scheme": INT8}


def planned(data, **fields):
    recipe = Recipe.parse(SCHEME | {"algorithms": [R3, "kv_cache"], "format": "compressed_tensors"} | fields)
    return plan(data.model("tiny-llama"), recipe)


def test_the_plan_warns_of_engines_that_leave_the_rotation_out(data):
    made = planned(data)
    (warning,) = (w for w in made.warnings if "transform_config" in w)
    assert "engines refuse it; gsq eval reads it" in warning
    assert warning.endswith("set r3: false for hadamard")
    assert not planned(data, algorithms=["kv_cache"]).warnings


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"format": "ascend", "scheme": {"kv_cache": INT8["kv_cache"] | {"granularity": "channel"}}},
            "this checkpoint format holds no hadamard map of cached keys; for hadamard set r3: false",
        ),
        (
            {"algorithms": [R3, {"kv_cache": {"before_rope": True}}]},
            "algorithm 'hadamard' maps keys after their rotation, and 'kv_cache' quantizes none of those; "
            "for hadamard set r3: false",
        ),
        (
            {"scheme": "W8A16", "algorithms": [R3, "rtn"]},
            "'hadamard' finds no quantized keys to map; give scheme a kv_cache, or for hadamard set r3: false",
        ),
        ({"algorithms": [R3]}, "none of its algorithms treats the KV cache; add 'kv_cache' to them, or remove it"),
    ],
    ids=["format", "before_rope", "no cache", "no scales"],
)
def test_what_cannot_be_done_is_said_before_any_work(data, fields, message):
    with pytest.raises(PlanError) as caught:
        planned(data, **fields)
    assert any(message in problem for problem in caught.value.problems), caught.value.problems


def test_the_folder_names_every_attention_module(data, tokens, tmp_path):
    recipe = Recipe.parse(SCHEME | {"algorithms": [R3, "kv_cache"], "format": "compressed_tensors"})
    report = quantize(data.model("tiny-llama"), recipe, tmp_path / "out", calibration=tokens, samples=4, seq_len=64)
    assert [row["of"] for row in report.data["caches"] if "online" in row] == ["key"] * 4
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    (group,) = config["transform_config"]["config_groups"].values()
    assert group["head_dim"] == 64
    attention = [f"model.layers.{block}.self_attn" for block in range(4)]
    assert [(apply["location"], apply["targets"]) for apply in group["apply"]] == [
        ("q_attn", attention),
        ("k_cache", attention),
    ]


@pytest.mark.slow
def test_few_bits_of_keys_are_spent_better(data, tmp_path, monkeypatch):
    """Three bits per head of a token, with zero points. The core's plain format holds them, no engine's does."""
    installed = write_distribution(tmp_path / "site", "kit", "0.9", format="plain = gs_core.testing.plugins:Plain")
    monkeypatch.syspath_prepend(installed)
    scheme = {"kv_cache": {"format": "int3", "granularity": "head", "symmetric": False, "dynamic": True}}
    measured = {}
    for name, algorithms in (("plain", ["kv_cache"]), ("rotated", [R3, "kv_cache"])):
        recipe = Recipe.parse({"scheme": scheme, "algorithms": algorithms, "format": "plain"})
        source, folder = data.model("tiny-llama"), tmp_path / name
        quantize(source, recipe, folder, calibration=data.calibration, samples=4, seq_len=64)
        measured[name] = evaluate(folder, data.evaluation).perplexity
    print(measured)
    assert measured["plain"] > 15.4
    assert 14.63 < measured["rotated"] < 15.05
