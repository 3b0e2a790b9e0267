"""Files that mindspore_gs 1.4.1 and msModelSlim 26.1 wrote: read to the numbers they mean, and laid out as ours are."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gs_core import QuantizedTensor, StaticInput
from gs_core.arrays import RawTensor, astype, from_raw, to_raw
from gs_core.interfaces import LayerNumbers
from gs_core.storage import Checkpoint, read_header
from gs_golden_stick import Ascend, GoldenStick, GoldenStickNetwork, int4
from gs_golden_stick.labels import label

GOLDEN, LAYER = Path(__file__).parent / "golden", "layers.0.wq"


@pytest.fixture
def read(tmp_path):
    """``(file)``: the weight and the numbers of the layer in a file of Golden Stick's."""

    def read(file: str) -> tuple[np.ndarray, LayerNumbers]:
        folder = tmp_path / file
        folder.mkdir()
        shutil.copy(GOLDEN / file, folder)
        checkpoint, numbers = GoldenStick().read(Checkpoint(folder), {})
        assert set(numbers) == {LAYER}
        return from_raw(checkpoint[f"{LAYER}.weight"].read()), numbers[LAYER]

    return read


def distance(x: np.ndarray, y: np.ndarray) -> float:
    return float(np.linalg.norm(x - y) / np.linalg.norm(y))


@pytest.mark.parametrize(
    ("file", "name", "granularity", "error"),
    [
        ("rtn4.ckpt", "W4A16", "channel", 0.12),
        ("rtn4g.ckpt", "W4A16", "group", 0.104),
        ("rtn4g.safetensors", "W4A16", "group", 0.104),
        ("awq.ckpt", "W4A16", "group", 0.106),
        ("a8dynw8.ckpt", "W8A8_DYNAMIC", "channel", 0.0003),
        ("a8w8.ckpt", "W8A8", "channel", 0.0003),
        ("sq.ckpt", "W8A8", "channel", 0.0102),
        ("sq_bias.safetensors", "W8A8", "channel", 0.0102),
    ],
)
def test_all_files_of_one_weight_mean_that_weight(read, file, name, granularity, error):
    """A wrong axis, nibble, scale or sign would leave nothing of it: the errors are those of rounding alone."""
    weight, numbers = read(file)
    assert (label(numbers.scheme), numbers.scheme.weights.granularity) == (name, granularity)
    assert distance(weight, read("rtn8.ckpt")[0]) < error


def test_one_scale_for_the_activations_is_a_reciprocal(read):
    _, numbers = read("a8w8.ckpt")
    assert 1 / numbers.inputs.scale == pytest.approx([3404])
    assert numbers.inputs.zero_point.tolist() == [7]


def test_a_smoothed_layer_has_a_scale_for_each_input_feature(read):
    _, numbers = read("sq.ckpt")
    assert numbers.inputs.scale.shape == (256,) and np.unique(numbers.inputs.scale).size > 100
    assert numbers.inputs.zero_point.tolist() == [1]


def test_a_bias_leaves_the_cell_that_wraps_it(tmp_path):
    shutil.copy(GOLDEN / "sq_bias.safetensors", tmp_path)
    checkpoint, _ = GoldenStick().read(Checkpoint(tmp_path), {})
    assert sorted(checkpoint.tensors) == [f"{LAYER}.bias", f"{LAYER}.weight"]
    bias = checkpoint[f"{LAYER}.bias"]
    assert (bias.dtype, bias.shape) == ("float16", (256,))


@pytest.mark.parametrize(
    ("file", "suppression"),
    [
        ("rtn8", None),
        ("rtn4", None),
        ("rtn4g", None),
        ("awq", "awq"),
        ("sq", None),
        ("a8w8", "none"),
        ("a8dynw8", None),
    ],
)
def test_ours_are_laid_out_as_golden_sticks(read, file, suppression):
    theirs = read_header(GOLDEN / f"{file}.ckpt")
    scheme = read(f"{file}.ckpt")[1].scheme
    codes = np.zeros((256, 256), np.int8)
    groups = 256 // (scheme.weights.group_size or 256)
    tensor = QuantizedTensor(codes, np.ones((256, groups), np.float16), None, scheme.weights)
    inputs = StaticInput(np.ones(1, np.float16), np.ones(1, np.float32)) if scheme.inputs else None
    plugin = GoldenStickNetwork(suppression)
    name = label(scheme)
    arrays = plugin.parameters(tensor, None if name.endswith("DYNAMIC") else inputs, name)
    ours = {f"{LAYER}.{suffix}": described(array) for suffix, array in arrays.items()}
    assert ours == {name: (stored.dtype, stored.shape) for name, stored in theirs.items()}


def test_the_bytes_of_golden_sticks_int4():
    stored = read_header(GOLDEN / "rtn4.ckpt")[f"{LAYER}._layer.weight"].read()
    assert int4.pack(int4.unpack(from_raw(stored))).data.tobytes() == stored.data.tobytes()


def described(array: Any) -> tuple[str, tuple[int, ...]]:
    raw = array if isinstance(array, RawTensor) else to_raw(array)
    return raw.dtype, raw.shape


# --- msModelSlim ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["msmodelslim_w8a8", "msmodelslim_w8a8_fp16"])
def test_msmodelslims_weights_are_the_models(folder):
    checkpoint, numbers = Ascend().read(Checkpoint(GOLDEN / folder), {})
    model = Checkpoint(GOLDEN / "qwen3")
    assert set(checkpoint.tensors) == set(model.tensors)
    for layer in numbers:
        original = from_raw(model[f"{layer}.weight"].read()).astype(np.float32)
        limit = 0.026 if layer.endswith("down_proj") else 0.008  # float16's down has its outliers smoothed into it
        assert distance(from_raw(checkpoint[f"{layer}.weight"].read()), original) < limit, layer


@pytest.mark.parametrize("folder", ["msmodelslim_w8a8", "msmodelslim_w8a8_fp16"])
def test_msmodelslims_offset_is_taken_out_by_quant_bias(folder):
    """Ours computes what theirs stores."""
    stored = Checkpoint(GOLDEN / folder)
    layer = "model.layers.0.self_attn.q_proj"
    arrays = {s: from_raw(stored[f"{layer}.{s}"].read()) for s in ("weight", "input_offset", "quant_bias")}
    expected = -(arrays["weight"].astype(np.int64).sum(axis=1) * int(arrays["input_offset"][0]))
    np.testing.assert_array_equal(arrays["quant_bias"], expected)


@pytest.mark.parametrize("folder", ["msmodelslim_w8a8", "msmodelslim_w8a8_fp16"])
def test_ours_are_laid_out_as_msmodelslims(folder):
    stored = Checkpoint(GOLDEN / folder)
    dtype = "float16" if folder.endswith("fp16") else "bfloat16"
    _, numbers = Ascend().read(stored, {})
    for layer, of in numbers.items():
        shape = stored[f"{layer}.weight"].shape
        scale = astype(np.ones((shape[0], 1), np.float32), dtype)
        tensor = QuantizedTensor(np.zeros(shape, np.int8), scale, None, of.scheme.weights)
        arrays = Ascend().parameters(tensor, of.inputs, label(of.scheme))
        ours = {f"{layer}.{suffix}": described(array) for suffix, array in arrays.items()}
        assert ours == {n: (t.dtype, t.shape) for n, t in stored.tensors.items() if n.startswith(f"{layer}.")}
