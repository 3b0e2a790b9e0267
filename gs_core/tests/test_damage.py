"""Sources, data and folders that are damaged: one line of error, and nothing of anybody's lost."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from gs_core import (
    CalibrationError,
    CheckpointError,
    GoldenStickError,
    OutputError,
    PlanError,
    PluginError,
    hookimpl,
    quantize,
)
from gs_core.arrays import astype, from_raw
from gs_core.storage import INDEX, Checkpoint, write_safetensors
from gs_core.testing import ToyAdapter


def damage(toy, name, value):
    """Put a value into one element of a stored tensor."""
    checkpoint = Checkpoint(toy)
    path = checkpoint[name].path
    tensors = {n: from_raw(t.read()) for n, t in checkpoint.tensors.items() if t.path == path}
    dtype = tensors[name].dtype.name
    wide = tensors[name].astype(np.float32)
    wide.reshape(-1)[5] = value
    write_safetensors(path, (tensors | {name: astype(wide, dtype)}).items())


def one_line(run, error, message, **keywords):
    with pytest.raises(error, match=message) as caught:
        run(**keywords)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_that_is_not_finite(value, run, toy, tmp_path):
    damage(toy, "blocks.1.up.weight", value)
    for _ in range(2):  # the second time it goes on from the first block, and says the same
        one_line(run, CheckpointError, r"blocks\.1\.up: the weight holds NaN or infinity; the source is damaged")
        assert len((tmp_path / "out" / ".gsq" / "journal.jsonl").read_text().splitlines()) == 1


def test_an_activation_that_is_not_finite(run, toy):
    damage(toy, "blocks.1.mlp_norm.weight", np.nan)
    where = r"blocks\.1: the activation entering blocks\.1\.gate, blocks\.1\.up is not finite"
    one_line(run, CalibrationError, where, scheme="W8A8_STATIC")


def test_a_damaged_layer_that_stays_in_float_is_refused(run, toy):
    damage(toy, "blocks.1.up.weight", np.nan)
    one_line(run, CheckpointError, r"blocks\.1\.up\.weight: the tensor contains NaN or infinity", ignore=["*.up"])


def test_a_shard_cut_short_is_found_before_anything_is_written(run, toy, tmp_path):
    shard = sorted(toy.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-100])
    one_line(run, CheckpointError, f"{shard.name}: cut short: ")
    assert not (tmp_path / "out").exists()


def test_an_index_that_points_outside(run, toy, tmp_path):
    index = json.loads((toy / INDEX).read_text())
    index["weight_map"]["norm.weight"] = "../norm.safetensors"
    (toy / INDEX).write_text(json.dumps(index))
    one_line(run, CheckpointError, "'norm.weight' points outside the folder: '../norm.safetensors'")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [("{nonsense", "model_type"), ('{"model_type": "toy", "hidden": -3}', "'vocabulary' must be a positive integer")],
)
def test_a_config_that_says_nothing(content, message, run, toy, tmp_path):
    (toy / "config.json").write_text(content)
    one_line(run, CheckpointError, message)
    assert not (tmp_path / "out").exists()


def test_a_folder_with_something_in_it(run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    for restart in (False, True):
        one_line(run, OutputError, "is not empty", restart=restart)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def test_a_model_is_not_quantized_into_its_own_folder(run, toy, contents):
    """Even where that is a quantized one of ours, which --restart would throw away before it is read."""
    run()
    folder = toy.parent / "out"
    before = contents(folder)
    for given in (folder, toy.parent / "toy" / ".." / "out"):
        one_line(run, PlanError, "is the model; choose another folder", source=folder, out=given, restart=True)
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"calibration": None}, PlanError, "level needs calibration data: pass `calibration=`"),
        ({"calibration": "absent.txt"}, PlanError, r"absent\.txt: no such text file or folder"),
        ({"samples": 1000}, CalibrationError, "has 8 samples of 24 tokens, the recipe needs 1000"),
        ({"seq_len": 1000}, PlanError, "calibration with 1000 tokens: the model takes at most 512"),
        (
            {"calibration": np.full((8, 24), 256)},
            CalibrationError,
            "token ids are between 256 and 256, but the model has 256",
        ),
        ({"device": "cuda:7"}, PlanError, "the toy computes on the cpu, not on 'cuda:7'"),
    ],
)
def test_what_cannot_be_run_is_found_before_anything_is_written(given, error, message, run, tmp_path):
    one_line(run, error, message, scheme="W8A8", algorithms=["level", "round"], **given)
    assert not (tmp_path / "out").exists()


def test_static_activations_need_data_too(run):
    one_line(run, PlanError, "static activations need calibration data", scheme="W8A8_STATIC", calibration=None)


def test_every_error_is_of_one_family():
    for error in (CalibrationError, CheckpointError, OutputError, PlanError):
        assert issubclass(error, GoldenStickError)


def test_a_source_that_is_changed_meanwhile_is_another_model(run, toy, tmp_path):
    damage(toy, "blocks.1.up.weight", np.nan)
    one_line(run, CheckpointError, "NaN")
    damage(toy, "blocks.1.up.weight", 0.5)
    one_line(run, OutputError, "holds an unfinished run with another model")
    run(restart=True)
    shutil.rmtree(toy)
    with pytest.raises(PlanError, match="no such model folder"):
        quantize(toy, "w8a8-rtn", tmp_path / "new", adapter=ToyAdapter())


def test_a_plugin_that_returns_a_zero_scale_is_named_before_anything_is_written(run, tmp_path):
    class Zeroing:
        @hookimpl(wrapper=True)
        def quantize(self):
            return {name: replace(tensor, scale=tensor.scale * 0) for name, tensor in (yield).items()}

    one_line(run, PluginError, r"'round' quantized blocks\.0\.\w+ wrongly: scales contain zero", plugins=[Zeroing()])
    assert not list((tmp_path / "out").glob("*.safetensors"))
