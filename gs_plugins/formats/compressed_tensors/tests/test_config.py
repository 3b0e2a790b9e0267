"""The ``quantization_config`` that engines read: every key here was found to matter to transformers or to vLLM."""

import pytest

from gs_compressed_tensors import CompressedTensors
from gs_compressed_tensors.config import scheme_of, to_config
from gs_core import CheckpointError, LayerInfo, QuantizationArgs, QuantizationScheme
from gs_schemas import SCHEMES

OF_LAYERS = [name for name, scheme in SCHEMES.items() if scheme.kv_cache is None]
ATTENTION = [f"model.layers.0.self_attn.{p}_proj" for p in "qkvo"]
MLP = [f"model.layers.0.mlp.{p}_proj" for p in ("gate", "up", "down")]
EXPERTS = [f"model.layers.0.mlp.experts.{e}.{p}_proj" for e in range(2) for p in ("gate", "up", "down")]


def config(schemes: dict[str, QuantizationScheme], kept=(), aliases=None) -> dict:
    return to_config(schemes, kept, aliases or {})


def uniform(name: str, layers=(*ATTENTION, *MLP), kept=()) -> dict:
    return config(dict.fromkeys(layers, SCHEMES[name]), kept)


def contains(found: dict, wanted: dict) -> bool:
    return wanted.items() <= found.items()


@pytest.mark.parametrize(
    ("name", "layout", "weights"),
    [
        ("W4A16", "pack-quantized", {"num_bits": 4, "symmetric": True, "strategy": "group", "group_size": 128}),
        ("W4A16_ASYM", "pack-quantized", {"num_bits": 4, "symmetric": False, "strategy": "group", "group_size": 128}),
        ("W8A16", "pack-quantized", {"num_bits": 8, "symmetric": True, "strategy": "channel", "group_size": None}),
        ("W8A8", "int-quantized", {"num_bits": 8, "symmetric": True, "strategy": "channel", "group_size": None}),
        ("W8A8_STATIC", "int-quantized", {"num_bits": 8, "symmetric": True, "strategy": "channel", "group_size": None}),
    ],
)
def test_one_scheme(name, layout, weights):
    found = uniform(name)
    assert contains(
        found, {"quant_method": "compressed-tensors", "format": layout, "quantization_status": "compressed"}
    )
    (group,) = found["config_groups"].values()
    assert contains(group, {"targets": ["Linear"], "format": layout, "output_activations": None})
    assert contains(group["weights"], weights | {"type": "int", "dynamic": False, "actorder": None})


def test_activations():
    groups = {name: next(iter(uniform(name)["config_groups"].values())) for name in ("W4A16", "W8A8", "W8A8_STATIC")}
    assert groups["W4A16"]["input_activations"] is None
    int8 = {"num_bits": 8, "type": "int", "symmetric": True}
    assert contains(groups["W8A8"]["input_activations"], int8 | {"strategy": "token", "dynamic": True})
    assert contains(groups["W8A8_STATIC"]["input_activations"], int8 | {"strategy": "tensor", "dynamic": False})


def test_the_head_is_always_ignored_and_so_is_what_was_kept():
    """vLLM quantizes every Linear that it is not told to leave alone."""
    assert uniform("W4A16")["ignore"] == ["lm_head"]
    assert uniform("W4A16", kept=["model.layers.0.mlp.gate"])["ignore"] == ["lm_head", "model.layers.0.mlp.gate"]


def test_two_schemes_are_a_mixed_precision_of_layers_by_name():
    found = config(dict.fromkeys(ATTENTION, SCHEMES["W4A16"]) | dict.fromkeys(MLP, SCHEMES["W8A8"]))
    assert found["format"] == "mixed-precision"
    groups = {group["format"]: group for group in found["config_groups"].values()}
    assert sorted(groups) == ["int-quantized", "pack-quantized"]
    assert groups["pack-quantized"]["targets"] == ["Linear"]  # most layers
    assert groups["int-quantized"]["targets"] == sorted(MLP)


def test_two_schemes_of_one_layout_keep_its_name():
    wide = SCHEMES["W4A16"].model_copy(update={"weights": SCHEMES["W8A16"].weights})
    found = config(dict.fromkeys(ATTENTION, SCHEMES["W4A16"]) | dict.fromkeys(MLP, wide))
    assert found["format"] == "pack-quantized" and len(found["config_groups"]) == 2


def test_a_presets_name_makes_no_group_of_its_own():
    unnamed = SCHEMES["W8A8"].model_copy(update={"name": None})
    assert len(config({ATTENTION[0]: SCHEMES["W8A8"], ATTENTION[1]: unnamed})["config_groups"]) == 1


def test_layers_that_engines_spell_otherwise_are_named_both_ways():
    found = config(
        dict.fromkeys(ATTENTION, SCHEMES["W8A8"]) | {MLP[0]: SCHEMES["W4A16"]},
        kept=["model.vision"],
        aliases={MLP[0]: "language_model.mlp.gate", "model.vision": "vision"},
    )
    groups = {group["format"]: group for group in found["config_groups"].values()}
    assert groups["pack-quantized"]["targets"] == ["language_model.mlp.gate", MLP[0]]
    assert found["ignore"] == ["lm_head", "model.vision", "vision"]


@pytest.mark.parametrize("name", sorted(OF_LAYERS))
def test_what_was_written_is_read_as_the_same_scheme(name):
    found = uniform(name, kept=["model.layers.0.mlp.gate"])
    assert scheme_of(found, ATTENTION[0]) == SCHEMES[name]
    assert scheme_of(found, "lm_head") is None
    assert scheme_of(found, "model.layers.0.mlp.gate") is None


def test_a_name_wins_over_the_class_whatever_the_order():
    schemes = {MLP[0]: SCHEMES["W4A16"]} | dict.fromkeys(ATTENTION, SCHEMES["W8A8"])
    for found in (config(schemes), config(dict(reversed(schemes.items())))):
        assert scheme_of(found, MLP[0]).inputs is None
        assert scheme_of(found, ATTENTION[0]).inputs is not None
        assert scheme_of(found, "model.layers.9.mlp.gate_proj").inputs is not None


@pytest.mark.parametrize(
    "weights",
    [
        {"num_bits": 8, "type": "float", "strategy": "channel"},
        {"num_bits": 9, "type": "int", "strategy": "channel"},
        {"num_bits": 4, "type": "int", "strategy": "attn_head"},
        {"num_bits": 4, "type": "int", "strategy": "group", "group_size": -1},
        {"num_bits": 4, "type": "int", "strategy": "group"},
        {"num_bits": "four", "type": "int"},
        "int4",
    ],
)
def test_numbers_that_cannot_be_read_are_an_error_of_one_line(weights):
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None}
    with pytest.raises(CheckpointError) as error:
        scheme_of({"config_groups": {"group_0": group}}, "layer")
    assert "\n" not in str(error.value) and "compressed-tensors" in str(error.value)


# --- what it refuses ---------------------------------------------------------------------------------------------


def scheme(inputs: dict | None = None, **weights: object) -> QuantizationScheme:
    return QuantizationScheme(
        weights=QuantizationArgs(**weights), inputs=None if inputs is None else QuantizationArgs(**inputs)
    )


TOKEN = {"format": "int8", "granularity": "token", "dynamic": True}


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (scheme(format="uint4", symmetric=False), "holds signed integers"),
        (scheme(format="fp8_e4m3"), "not fp8_e4m3"),
        (scheme(format="int8", scale_format="float32"), "scales in the model's dtype"),
        (scheme(format="int8", granularity="block", block_size=(8, 8)), "not per block"),
        (scheme(format="int4", granularity="tensor"), "need scales per channel or group"),
        (scheme(TOKEN, format="int3"), "not int3 and int8"),
        (scheme(TOKEN | {"format": "int4"}, format="int8"), "not int8 and int4"),
        (scheme(TOKEN, format="int8", granularity="group", group_size=32), "not per group"),
        (scheme(TOKEN | {"granularity": "tensor"}, format="int8"), "dynamic per token or static per tensor"),
        (scheme(TOKEN, format="int8", symmetric=False), "need symmetric weights"),
    ],
)
def test_what_engines_cannot_load_is_refused_while_planning(asked, message):
    layer = LayerInfo("layer", 0, (64, 64), "site", "bfloat16")
    refusal = CompressedTensors().unsupported(layer, asked)
    assert refusal and message in refusal and "\n" not in refusal


@pytest.mark.parametrize("name", sorted(OF_LAYERS))
def test_no_preset_is_refused(name):
    layer = LayerInfo("layer", 0, (64, 128), "site", "bfloat16")
    assert CompressedTensors().unsupported(layer, SCHEMES[name]) is None


@pytest.mark.parametrize("odd", ["self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj"])
def test_layers_that_engines_fuse_need_one_scheme(odd):
    layers = dict.fromkeys([*ATTENTION, *MLP], SCHEMES["W4A16"])
    assert CompressedTensors().conflicts(layers) == []
    for other in (SCHEMES["W8A8"], None):
        conflicts = CompressedTensors().conflicts(layers | {f"model.layers.0.{odd}": other})
        assert conflicts and all("give both the same scheme" in line and odd in line for line in conflicts)
    assert CompressedTensors().conflicts(layers | {"model.layers.0.self_attn.o_proj": None}) == []


# --- experts -----------------------------------------------------------------------------------------------------


def test_experts_of_a_static_scheme_get_activations_per_token():
    """vLLM has no kernel for static activations of int8 experts."""
    plugin = CompressedTensors()
    expert, router = (LayerInfo(n, 0, (64, 64), "s", "bfloat16") for n in (EXPERTS[0], MLP[0]))
    fitted, why = plugin.fit(expert, SCHEMES["W8A8_STATIC"])
    assert fitted.inputs == SCHEMES["W8A8"].inputs and fitted.weights == SCHEMES["W8A8"].weights and why
    assert plugin.fit(router, SCHEMES["W8A8_STATIC"]) is None
    assert plugin.fit(expert, SCHEMES["W8A8"]) is None
    assert plugin.fit(expert, SCHEMES["W4A16"]) is None


def test_experts_do_not_decide_what_most_layers_are():
    """To an engine they are one fused tensor, and no Linear: a target "Linear" would miss them."""
    found = config(dict.fromkeys(EXPERTS, SCHEMES["W8A8"]) | dict.fromkeys(ATTENTION, SCHEMES["W4A16"]))
    groups = {group.get("format"): group for group in found["config_groups"].values()}
    assert groups["pack-quantized"]["targets"] == ["Linear"]
    assert groups["int-quantized"]["targets"] == sorted(EXPERTS)


def test_int8_experts_come_with_a_group_that_tells_transformers_how_to_read_them():
    found = uniform("W8A8", layers=[*ATTENTION, *EXPERTS])["config_groups"]
    assert next(iter(found)) == "experts" and "experts" in found["experts"]["targets"][0]
    assert "experts" not in uniform("W4A16", layers=[*ATTENTION, *EXPERTS])["config_groups"]
    assert scheme_of({"config_groups": found}, EXPERTS[0]).weights.bits == 8
