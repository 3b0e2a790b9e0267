"""Folders that contradict themselves are one line; whoever wrote what can be read is read."""

import json
from typing import Any

import numpy as np
import pytest

from gs_core import CheckpointError, LayerInfo, StaticInput, numerics
from gs_core.arrays import PACKED_INT4, RawTensor, from_raw
from gs_core.storage import SINGLE, Checkpoint, write_safetensors
from gs_golden_stick import GoldenStick, GoldenStickNetwork
from gs_schemas import SCHEMES

LAYER = "model.layers.0.mlp.up_proj"
WEIGHT = np.random.default_rng(0).standard_normal((24, 256)).astype(np.float32)
INPUT = StaticInput(np.array([0.5], np.float16), np.array([4], np.float32))


def stored(plugin: Any, preset: str) -> tuple[dict[str, str], dict[str, Any]]:
    """A description, and the tensors of one layer, beside a norm."""
    scheme = SCHEMES[preset]
    tensor = numerics.quantize_weight(WEIGHT, scheme.weights, "float16")
    inputs = INPUT if preset == "W8A8_STATIC" else None
    arrays = plugin.parameters(tensor, inputs, plugin.layout(scheme))
    tensors = {f"{LAYER}.{suffix}": array for suffix, array in arrays.items()}
    return dict.fromkeys(tensors, plugin.layout(scheme)), tensors | {"model.norm.weight": np.ones(8, np.float16)}


@pytest.fixture
def read(tmp_path):
    """``(plugin, description, tensors)``: the checkpoint and the numbers that are made of them."""

    def read(plugin: Any, description: Any, tensors: dict[str, Any]):
        text = description if isinstance(description, str) else json.dumps(description)
        (tmp_path / plugin.description).write_text(text)
        write_safetensors(tmp_path / SINGLE, tensors.items())
        return plugin.read(Checkpoint(tmp_path), {})

    return read


@pytest.mark.parametrize("preset", ["W4A16", "W4A16_ASYM", "W8A16", "W8A8", "W8A8_STATIC"])
@pytest.mark.parametrize("plugin", [GoldenStick(), GoldenStickNetwork()])
def test_a_layer_becomes_a_weight_and_everything_else_stays(read, plugin, preset):
    checkpoint, numbers = read(plugin, *stored(plugin, preset))
    assert sorted(checkpoint.tensors) == [f"{LAYER}.weight", "model.norm.weight"]
    rounded = numerics.dequantize(numerics.quantize_weight(WEIGHT, SCHEMES[preset].weights, "float16"))
    np.testing.assert_array_equal(from_raw(checkpoint[f"{LAYER}.weight"].read()), rounded)
    assert numbers[LAYER].scheme.weights == SCHEMES[preset].weights


@pytest.mark.parametrize("preset", ["W4A16", "W8A16", "W8A8", "W8A8_STATIC"])
def test_a_network_keeps_int8_codes_as_it_kept_the_weight(read, preset):
    plugin, scheme = GoldenStickNetwork(), SCHEMES[preset]
    tensor = numerics.quantize_weight(WEIGHT, scheme.weights, "float16")
    given = {"tensor": tensor, "inputs": INPUT if preset == "W8A8_STATIC" else None, "layout": plugin.layout(scheme)}
    infos = [LayerInfo(LAYER, 0, WEIGHT.shape, "s", "float16", transposed=transposed) for transposed in (False, True)]
    plain, lying = (plugin.pack(**given, online=None, layer=info) for info in infos)
    assert lying["_layer.weight"].shape == ((256, 12) if preset == "W4A16" else (256, 24))
    others = [name for name in plain if name != "_layer.weight"]
    assert all(np.array_equal(plain[name], lying[name]) for name in others)
    description = {f"{LAYER}.{suffix}": given["layout"] for suffix in lying}
    checkpoint, _ = read(plugin, description, {f"{LAYER}.{suffix}": array for suffix, array in lying.items()})
    found = from_raw(checkpoint[f"{LAYER}.weight"].read())
    np.testing.assert_array_equal(found, numerics.dequantize(tensor))


def test_packed_bytes_that_lost_mindspores_metadata(read):
    """Another library's copy of the file has them as int8."""
    description, tensors = stored(GoldenStick(), "W4A16")
    expected = read(GoldenStick(), description, tensors)[0][f"{LAYER}.weight"].read()
    packed = tensors[f"{LAYER}.weight"]
    assert packed.dtype == PACKED_INT4
    copied = tensors | {f"{LAYER}.weight": RawTensor("int8", packed.shape, packed.data)}
    found = read(GoldenStick(), description, copied)[0][f"{LAYER}.weight"].read()
    assert found.data.tobytes() == expected.data.tobytes()


def test_a_scale_for_each_input_feature_is_part_of_the_weight(read):
    """Golden Stick's smoothing: the layer divides its own input."""
    description, tensors = stored(GoldenStick(), "W8A8_STATIC")
    plain = from_raw(read(GoldenStick(), description, tensors)[0][f"{LAYER}.weight"].read())
    smooth = np.linspace(0.5, 2, 256, dtype=np.float32)
    scales = {f"{LAYER}.input_scale": (0.5 * smooth).astype(np.float32)}
    checkpoint, numbers = read(GoldenStick(), description, tensors | scales)
    np.testing.assert_allclose(from_raw(checkpoint[f"{LAYER}.weight"].read()), plain / smooth, rtol=1e-6)
    np.testing.assert_array_equal(numbers[LAYER].inputs.scale, 0.5 * smooth)
    assert numbers[LAYER].inputs.zero_point == [4]


def test_a_smooth_scale_of_a_weight_only_layer_is_part_of_the_weight(read):
    plugin = GoldenStickNetwork("awq")
    description, tensors = stored(plugin, "W4A16")
    smooth = np.linspace(0.5, 2, 256).astype(np.float16)
    plain, scaled = (
        from_raw(read(plugin, description, tensors | more)[0][f"{LAYER}.weight"].read())
        for more in ({}, {f"{LAYER}._layer.matmul.smooth_scale": smooth})
    )
    np.testing.assert_allclose(scaled, plain * smooth.astype(np.float32), rtol=1e-6)


def test_a_smooth_scale_before_activations_per_token_is_computed_when_the_model_runs(read):
    plugin = GoldenStickNetwork()
    description, tensors = stored(plugin, "W8A8")
    smooth = {f"{LAYER}._layer.matmul.smooth_scale": np.full(256, 2, np.float16)}
    found = []
    for more in ({}, smooth):
        checkpoint, numbers = read(plugin, description, tensors | more)
        found.append((from_raw(checkpoint[f"{LAYER}.weight"].read()), numbers[LAYER].online))
    (plain, none), (same, online) = found
    np.testing.assert_array_equal(plain, same)
    assert none is None
    np.testing.assert_array_equal(online.scale, np.full(256, 0.5))


@pytest.mark.parametrize("description", ["", "[]", "nonsense", "[" * 100_000])
def test_a_description_that_is_none(read, description):
    with pytest.raises(CheckpointError, match=r"quantization_description\.json: not a JSON object"):
        read(GoldenStick(), description, stored(GoldenStick(), "W8A8")[1])


@pytest.mark.parametrize("kind", ["FLOAT", "W4A4_FLATQUANT_DYNAMIC", "C8", 3, None])
def test_a_type_that_is_not_read(read, kind):
    description, tensors = stored(GoldenStick(), "W8A8")
    with pytest.raises(
        CheckpointError, match=f"{LAYER}.weight, which is quantized, the type {kind!r}; read here: W8A16"
    ):
        read(GoldenStick(), dict.fromkeys(description, kind), tensors)


@pytest.mark.parametrize(
    ("preset", "suffix", "value"),
    [
        ("W8A8", "weight", np.zeros((24, 256), np.float16)),
        ("W8A8", "weight", np.zeros(24, np.int8)),
        ("W8A8", "weight_scale", np.ones(23, np.float16)),
        ("W8A8", "weight_scale", np.ones((2, 24), np.float16)),
        ("W4A16", "weight_scale", np.ones((3, 24), np.float16)),
        ("W4A16", "weight_scale", np.ones((2, 23), np.float16)),
        ("W4A16", "weight_scale", np.ones((0, 24), np.float16)),
        ("W4A16_ASYM", "weight_offset", np.ones((1, 24), np.int32)),
        ("W8A8_STATIC", "deq_scale", np.ones(23, np.float32)),
        ("W8A8_STATIC", "input_scale", np.ones(2, np.float16)),
        ("W8A8_STATIC", "input_scale", np.zeros(256, np.float16)),
        ("W8A8_STATIC", "input_scale", np.full(256, np.nan, np.float16)),
        ("W8A8_STATIC", "input_offset", np.ones(2, np.int8)),
    ],
)
def test_tensors_that_do_not_fit_together(read, preset, suffix, value):
    description, tensors = stored(GoldenStick(), preset)
    with pytest.raises(CheckpointError) as error:
        read(GoldenStick(), description, tensors | {f"{LAYER}.{suffix}": value})
    assert f"{LAYER}.{suffix}" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("preset", "suffix"), [("W8A8", "weight"), ("W8A8_STATIC", "input_scale"), ("W8A8_STATIC", "input_offset")]
)
def test_a_tensor_that_is_missing(read, preset, suffix):
    description, tensors = stored(GoldenStick(), preset)
    del tensors[f"{LAYER}.{suffix}"]
    with pytest.raises(CheckpointError, match=rf"{LAYER}.*{suffix}"):
        read(GoldenStick(), description, tensors)


def test_scales_of_two_kinds(read):
    """A static scale beside the type of a dynamic layer."""
    description, tensors = stored(GoldenStick(), "W8A8_STATIC")
    with pytest.raises(CheckpointError, match="W8A8_DYNAMIC"):
        read(GoldenStick(), dict.fromkeys(description, "W8A8_DYNAMIC"), tensors)
