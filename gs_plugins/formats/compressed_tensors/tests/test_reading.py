"""A quantized folder read back: its weights as floats, and one line for a folder that contradicts itself."""

import numpy as np
import pytest

from gs_compressed_tensors import CompressedTensors
from gs_compressed_tensors.config import to_config
from gs_core import CheckpointError, StaticInput, numerics
from gs_core.arrays import from_raw
from gs_core.storage import SINGLE, Checkpoint, write_safetensors
from gs_schemas import SCHEMES

LAYER = "model.layers.0.mlp.up_proj"
WEIGHT = np.random.default_rng(0).standard_normal((24, 256)).astype(np.float32)


@pytest.fixture
def stored():
    """``(preset)``: the config, and the tensors of one layer by name, beside a norm."""

    def make(preset: str) -> tuple[dict, dict[str, np.ndarray]]:
        scheme, plugin = SCHEMES[preset], CompressedTensors()
        tensor = numerics.quantize_weight(WEIGHT, scheme.weights, "float32")
        inputs = StaticInput(np.array([0.5], np.float32)) if preset == "W8A8_STATIC" else None
        arrays = plugin.pack(tensor=tensor, inputs=inputs, layout=plugin.layout(scheme))
        tensors = {f"{LAYER}.{suffix}": array for suffix, array in arrays.items()}
        config = {"quantization_config": to_config({LAYER: scheme}, [], {})}
        return config, tensors | {"model.norm.weight": np.ones(8, np.float32)}

    return make


@pytest.fixture
def read(tmp_path):
    """``(config, tensors)``: the checkpoint and the numbers that the format makes of them."""

    def read(config: dict, tensors: dict[str, np.ndarray]):
        write_safetensors(tmp_path / SINGLE, tensors.items())
        return CompressedTensors().read(Checkpoint(tmp_path), config)

    return read


@pytest.mark.parametrize("preset", sorted(n for n, s in SCHEMES.items() if s.kv_cache is None))
def test_a_layer_becomes_a_weight_and_everything_else_stays(stored, read, preset):
    checkpoint, numbers = read(*stored(preset))
    assert sorted(checkpoint.tensors) == [f"{LAYER}.weight", "model.norm.weight"]
    rounded = numerics.dequantize(numerics.quantize_weight(WEIGHT, SCHEMES[preset].weights, "float32"))
    np.testing.assert_array_equal(from_raw(checkpoint[f"{LAYER}.weight"].read()), rounded)
    assert numbers[LAYER].scheme == SCHEMES[preset]
    assert (numbers[LAYER].inputs is not None) == (preset == "W8A8_STATIC")


def test_a_scale_that_no_group_accounts_for(stored, read):
    config, tensors = stored("W8A8")
    config["quantization_config"]["ignore"].append(LAYER)
    with pytest.raises(CheckpointError, match=f"{LAYER} is quantized, but quantization_config has no scheme for it"):
        read(config, tensors)


@pytest.mark.parametrize(
    ("preset", "suffix", "value"),
    [
        ("W4A16", "weight_packed", np.zeros((24, 31), np.int32)),
        ("W4A16", "weight_packed", np.zeros((23, 32), np.int32)),
        ("W4A16", "weight_scale", np.ones((24, 3), np.float32)),
        ("W4A16", "weight_shape", np.array([24, 256, 1])),
        ("W4A16", "weight_shape", np.array([-24, 256])),
        ("W4A16_ASYM", "weight_zero_point", np.zeros((2, 2), np.int32)),
        ("W8A8", "weight_scale", np.ones((23, 1), np.float32)),
        ("W8A8_STATIC", "input_scale", np.ones(2, np.float32)),
    ],
)
def test_tensors_that_do_not_fit_together(stored, read, preset, suffix, value):
    """Found when the folder is opened, before a weight is unpacked."""
    config, tensors = stored(preset)
    with pytest.raises(CheckpointError) as error:
        read(config, tensors | {f"{LAYER}.{suffix}": value})
    assert f"{LAYER}.{suffix}" in str(error.value) and "\n" not in str(error.value)


def test_a_shape_that_its_groups_do_not_divide(stored, read):
    config, tensors = stored("W4A16")
    with pytest.raises(CheckpointError, match=f"{LAYER}: group_size 128 does not divide in_features 300"):
        read(config, tensors | {f"{LAYER}.weight_shape": np.array([24, 300])})


@pytest.mark.parametrize(
    ("preset", "suffix", "shape"), [("W8A8", "weight_scale", (24,)), ("W8A8_STATIC", "input_scale", ())]
)
def test_scales_that_another_writer_stored_without_an_axis_of_one(stored, read, preset, suffix, shape):
    config, tensors = stored(preset)
    name = f"{LAYER}.{suffix}"
    checkpoint, numbers = read(config, tensors | {name: tensors[name].reshape(shape)})
    expected, same = read(config, tensors)
    np.testing.assert_array_equal(checkpoint[f"{LAYER}.weight"].read().data, expected[f"{LAYER}.weight"].read().data)
    assert numbers[LAYER].inputs == same[LAYER].inputs


@pytest.mark.parametrize(
    ("preset", "suffix"),
    [("W4A16", "weight_packed"), ("W4A16", "weight_shape"), ("W4A16_ASYM", "weight_zero_point"), ("W8A8", "weight")],
)
def test_a_tensor_that_is_missing(stored, read, preset, suffix):
    config, tensors = stored(preset)
    del tensors[f"{LAYER}.{suffix}"]
    with pytest.raises(CheckpointError) as error:
        read(config, tensors)
    assert f"{LAYER}.{suffix}" in str(error.value) and "\n" not in str(error.value)
