"""Presets: what the names of the field stand for."""

import pytest

from gs_schemas import RECIPES, SCHEMES, Recipe, SchemaError, recipe
from gs_schemas.presets import NEAREST_SCHEMES

# The fields of compressed-tensors' presets of these names, in its words: num_bits, strategy, group_size, symmetric,
# dynamic. W8A16 is per channel, as it was there up to version 0.15; W8A8_STATIC is vLLM's and llm-compressor's word,
# W4A4 QuaRot's, with the groups that W4A16 has, W4A4_CHANNEL what Ascend's engines call W4A4_DYNAMIC.
WEIGHTS = {
    "W4A16": (4, "group", 128, True, False),
    "W4A16_ASYM": (4, "group", 128, False, False),
    "W3A16": (3, "group", 128, True, False),
    "W2A16": (2, "group", 32, True, False),
    "W8A16": (8, "channel", None, True, False),
    "W8A8": (8, "channel", None, True, False),
    "W8A8_STATIC": (8, "channel", None, True, False),
    "W4A4": (4, "group", 128, True, False),
    "W4A4_CHANNEL": (4, "channel", None, True, False),
}
INPUTS = {
    "W8A8": (8, "token", None, True, True),
    "W8A8_STATIC": (8, "tensor", None, True, False),
    "W4A4": (4, "token", None, True, True),
    "W4A4_CHANNEL": (4, "token", None, True, True),
}


def in_their_words(args):
    if args is None:
        return None
    assert args.format == f"int{args.bits}"
    return args.bits, args.granularity, args.group_size, args.symmetric, args.dynamic


def test_schemes_are_compressed_tensors_own():
    schemes = {name: scheme for name, scheme in SCHEMES.items() if scheme.kv_cache is None}
    assert {name: in_their_words(scheme.weights) for name, scheme in schemes.items()} == WEIGHTS
    assert {n: in_their_words(s.inputs) for n, s in schemes.items() if s.inputs} == INPUTS
    assert all(scheme.name == scheme.describe() == name for name, scheme in SCHEMES.items())


@pytest.mark.parametrize(("tail", "number"), [("KV8", "int8"), ("KV_FP8", "fp8_e4m3")])
def test_a_scheme_with_a_cache_is_the_one_without_and_a_cache_in_eight_bits(tail, number):
    cache = SCHEMES[tail].kv_cache
    assert (cache.format, cache.granularity, cache.symmetric, cache.dynamic) == (number, "tensor", True, False)
    assert SCHEMES[tail].weights is SCHEMES[tail].inputs is None
    for name in ("W4A16", "W8A16", "W8A8"):
        both, layers = SCHEMES[f"{name}_{tail}"], SCHEMES[name]
        assert (both.weights, both.inputs, both.kv_cache) == (layers.weights, layers.inputs, cache)


@pytest.mark.parametrize(
    ("name", "scheme", "algorithms"),
    [
        ("w4a16-rtn", "W4A16", ["rtn"]),
        ("w4a16-gptq", "W4A16", ["gptq"]),
        ("w4a16-hadamard-gptaq", "W4A16", ["hadamard", "gptq"]),
        ("w4a16-hadamard-guided", "W4A16", ["hadamard", "gptq"]),
        ("w3a16-gptq", "W3A16", ["gptq"]),
        ("w2a16-gptaq", "W2A16", ["gptq"]),
        ("w4a16-asym-gptq", "W4A16_ASYM", ["gptq"]),
        ("w8a16-rtn", "W8A16", ["rtn"]),
        ("w8a8-rtn", "W8A8", ["rtn"]),
        ("w8a8-smoothquant", "W8A8", ["smoothquant", "rtn"]),
        ("w8a8-smoothquant-gptq", "W8A8", ["smoothquant", "gptq"]),
        ("w8a8-static-smoothquant", "W8A8_STATIC", ["smoothquant", "rtn"]),
        ("w4a4-hadamard", "W4A4", ["hadamard", "rtn"]),
        ("w4a4-hadamard-gptq", "W4A4", ["hadamard", "gptq"]),
        ("w4a4-flatquant", "W4A4_CHANNEL", ["flatquant"]),
        ("w4a4-flatquant-gptq", "W4A4_CHANNEL", ["flatquant", "gptq"]),
        ("kv8", "KV8", ["kv_cache"]),
        ("w4a16-kv-fp8-gptq", "W4A16_KV_FP8", ["gptq", "kv_cache"]),
        ("w8a8-kv8-smoothquant", "W8A8_KV8", ["smoothquant", "rtn", "kv_cache"]),
    ],
)
def test_a_recipe_is_what_its_name_says(name, scheme, algorithms):
    found = recipe(name)
    assert found.name == name
    assert found.scheme == SCHEMES[scheme]
    assert [algorithm.name for algorithm in found.algorithms] == algorithms
    holder = "ascend" if "flatquant" in algorithms else "compressed_tensors"
    assert (found.ignore, found.overrides, found.format) == (["lm_head"], [], holder)


@pytest.mark.parametrize("name", RECIPES)
def test_every_preset_survives_yaml_and_json(name):
    assert Recipe.from_text(RECIPES[name].to_yaml()) == RECIPES[name]
    assert Recipe.from_text(RECIPES[name].to_json()) == RECIPES[name]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("W4A16_GPTQ", "no recipe named 'W4A16_GPTQ'; the nearest: w4a16-gptq, "),
        ("zebra", "no recipe named 'zebra'; `gsq recipes` lists all."),
        ("W8A16", "W8A16 is a scheme, not a recipe; recipes with it: w8a16-rtn, w8a16-gptq."),
        ("w8a16", "W8A16 is a scheme, not a recipe; recipes with it: w8a16-rtn, w8a16-gptq."),
        (
            "FP8_DYNAMIC",
            "scheme FP8_DYNAMIC is not supported yet; the nearest is W8A8, in these recipes: w8a8-rtn, ",
        ),
    ],
)
def test_an_unknown_recipe_leads_to_the_nearest_ones(given, message):
    with pytest.raises(SchemaError) as caught:
        recipe(given)
    assert str(caught.value).startswith(f"recipe: {message}")


def test_schemes_that_are_not_supported_yet_lead_to_schemes_with_recipes():
    assert not NEAREST_SCHEMES.keys() & SCHEMES.keys()
    assert {*NEAREST_SCHEMES.values()} <= {preset.scheme.name for preset in RECIPES.values()}
