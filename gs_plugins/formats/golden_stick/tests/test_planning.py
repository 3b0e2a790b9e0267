"""What a plan hears: refusals, what is fitted, and what engines would not load side by side."""

from typing import Any

import pytest

from gs_core import LayerInfo, QuantizationArgs, QuantizationScheme
from gs_golden_stick import Ascend, GoldenStick, GoldenStickNetwork
from gs_schemas import SCHEMES

TOKEN = {"format": "int8", "granularity": "token", "dynamic": True}
TENSOR = {"format": "int8", "granularity": "tensor"}
EXPERT, LAYER = "model.layers.0.mlp.experts.3.up_proj", "model.layers.0.self_attn.o_proj"


def scheme(inputs: dict | None = None, **weights: Any) -> QuantizationScheme:
    return QuantizationScheme(
        weights=QuantizationArgs(**weights), inputs=None if inputs is None else QuantizationArgs(**inputs)
    )


def refusal(plugin: Any, asked: QuantizationScheme, name: str = LAYER, shape: tuple[int, int] = (64, 64)) -> str | None:
    return plugin.unsupported(LayerInfo(name, 0, shape, "site", "bfloat16"), asked)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (scheme(format="int3"), "holds W8A16, W4A16, W8A8, W8A8_DYNAMIC, not W3A16"),
        (scheme(format="uint4", symmetric=False), "signed integers, not uint4"),
        (scheme(format="fp8_e4m3"), "signed integers, not fp8_e4m3"),
        (scheme(TOKEN | {"format": "fp8_e4m3"}, format="int8"), "signed integers, not fp8_e4m3"),
        (scheme(format="int8", scale_format="float32"), "scales have the model's dtype here, not float32"),
        (scheme(format="int8", granularity="tensor"), "int8 weights have scales per channel here, not per tensor"),
        (scheme(format="int8", granularity="group", group_size=32), "per channel here, not per group"),
        (scheme(format="int4", granularity="tensor"), "per channel or group here, not per tensor"),
        (scheme(format="int4", granularity="block", block_size=(8, 8)), "not per block"),
        (scheme(format="int4", granularity="group", group_size=16), "a multiple of 32 input features, not 16"),
        (scheme(TENSOR, format="int4"), "not W4A8"),
        (scheme(TOKEN | {"format": "int4"}, format="int4"), "not W4A4_DYNAMIC"),
        (scheme(TOKEN, format="int8", symmetric=False), "int8 products need symmetric weights"),
        (scheme(TENSOR | {"dynamic": True}, format="int8"), "dynamic per token or static per tensor"),
        (scheme(TOKEN | {"symmetric": False}, format="int8"), "activations per token have no zero point"),
        (scheme(TOKEN, format="int4"), "not W4A8_DYNAMIC"),
    ],
)
def test_what_no_engine_loads_is_refused(asked, message):
    found = refusal(GoldenStick(), asked)
    assert found and message in found and "\n" not in found


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (SCHEMES["W4A16"], "holds W8A16, W8A8, W8A8_DYNAMIC, W4A4_DYNAMIC, not W4A16"),
        (scheme(format="int8", symmetric=False), "right for symmetric weights alone"),
        (
            scheme(TOKEN | {"format": "int4"}, format="int4", granularity="group", group_size=32),
            "W4A4_DYNAMIC has scales per channel here, not per group",
        ),
    ],
)
def test_what_vllm_ascend_does_not_load_is_refused(asked, message):
    assert message in (refusal(Ascend(), asked) or "")


@pytest.mark.parametrize("plugin", [GoldenStick(), GoldenStickNetwork()])
@pytest.mark.parametrize("name", ["W4A16", "W4A16_ASYM", "W8A16", "W8A8", "W8A8_STATIC"])
def test_the_common_presets_are_held(plugin, name):
    assert refusal(plugin, SCHEMES[name], shape=(64, 128)) is None


def test_int4_comes_in_pairs_of_output_features():
    asked = scheme(format="int4")
    assert "63 is an odd number" in (refusal(GoldenStick(), asked, shape=(63, 64)) or "")
    per_token = scheme(TOKEN | {"format": "int4"}, format="int4")
    assert refusal(Ascend(), per_token, shape=(63, 64)) is None  # not packed there


def test_a_network_has_cells_for_int4_by_int8():
    assert refusal(GoldenStickNetwork(), scheme(TOKEN, format="int4", granularity="group", group_size=32)) is None


def test_experts_of_a_static_scheme_get_activations_per_token():
    plugin = GoldenStick()
    expert, other = (LayerInfo(name, 0, (64, 64), "s", "bfloat16") for name in (EXPERT, LAYER))
    fitted, why = plugin.fit(expert, SCHEMES["W8A8_STATIC"])
    assert (fitted.weights, fitted.inputs) == (SCHEMES["W8A8"].weights, SCHEMES["W8A8"].inputs) and why
    assert plugin.fit(other, SCHEMES["W8A8_STATIC"]) is None
    assert plugin.fit(expert, SCHEMES["W8A8"]) is None


@pytest.mark.parametrize("odd", ["self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj"])
def test_projections_that_engines_fuse_need_one_type(odd):
    names = [f"self_attn.{p}_proj" for p in "qkvo"] + [f"mlp.{p}_proj" for p in ("gate", "up", "down")]
    layers = dict.fromkeys([f"model.layers.0.{name}" for name in names], SCHEMES["W8A8_STATIC"])
    assert GoldenStick().conflicts(layers) == []
    for other in (SCHEMES["W8A8"], None):
        conflicts = GoldenStick().conflicts(layers | {f"model.layers.0.{odd}": other})
        assert conflicts and all("give both the same scheme" in line and odd in line for line in conflicts)
    assert GoldenStick().conflicts(layers | {"model.layers.0.self_attn.o_proj": None}) == []


def test_scattered_groups_are_refused():
    """Golden Stick writes activation order's groups as if they were neighbours: 90 times the error."""
    assert not any(plugin.holds_group_index for plugin in (GoldenStick, GoldenStickNetwork, Ascend))


def test_where_a_layer_may_divide_its_own_input():
    static, dynamic = SCHEMES["W8A8_STATIC"], SCHEMES["W8A8"]
    assert GoldenStick().unsupported_online("scale", static) is None
    assert "of a W8A8 layer alone, not of W8A8_DYNAMIC" in (GoldenStick().unsupported_online("scale", dynamic) or "")
    assert GoldenStickNetwork().unsupported_online("scale", dynamic) is None
    for plugin, kind in (
        (GoldenStick(), "rotation"),
        (GoldenStickNetwork(), "kronecker"),
        (GoldenStickNetwork("none"), "scale"),
        (Ascend(), "scale"),
    ):
        assert plugin.unsupported_online(kind, static)
