"""Damaged checkpoints, full disks, folders that are in use: one line that says what and where, and nothing lost."""

import errno
import json
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from gs_core import CalibrationError, CheckpointError, GoldenStickError, OutputError, PlanError, evaluate, quantize

UP = "model.layers.1.mlp.up_proj"


@pytest.fixture
def model(data, tmp_path) -> Path:
    """A copy of the model, to be damaged."""
    return Path(shutil.copytree(data.model("tiny-llama"), tmp_path / "model"))


def change(model: Path, name: str, value: float, at: tuple[int, ...]) -> None:
    """Put another number into the checkpoint."""
    tensors = load_file(model / "model.safetensors")
    tensors[name][at] = value
    save_file(tensors, model / "model.safetensors")


def shard(model: Path) -> dict:
    """Cut the checkpoint into two shards with an index; returns the index."""
    tensors = load_file(model / "model.safetensors")
    files = {"model-00001-of-00002.safetensors": {}, "model-00002-of-00002.safetensors": {}}
    for number, (name, tensor) in enumerate(tensors.items()):
        files[sorted(files)[number % 2]][name] = tensor
    for file, part in files.items():
        save_file(part, model / file)
    (model / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {name: file for file, part in files.items() for name in part}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    return index


def contents(folder: Path) -> dict[str, bytes]:
    """Every file by its name; of the report, what does not depend on the clock."""
    found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    if "gsq_report.json" in found:
        report = json.loads(found["gsq_report.json"])
        found["gsq_report.json"] = json.dumps(report | {"run": None}).encode()
    return found


@contextmanager
def refused(kind: type[GoldenStickError], *says: object) -> Iterator[None]:
    """The block ends with this error, whose message is one line that names all of these."""
    with pytest.raises(kind) as error:
        yield
    message = str(error.value)
    assert "\n" not in message
    for what in says:
        assert str(what) in message


# --- the source --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 4, 1000, 5_000_000])
def test_a_file_that_was_cut_short(model, tmp_path, size):
    os.truncate(model / "model.safetensors", size)
    with refused(CheckpointError, model / "model.safetensors", "cut short"):
        quantize(model, "w8a8-rtn", tmp_path / "out")


def test_a_shard_that_was_cut_short(model, tmp_path):
    shard(model)
    damaged = model / "model-00002-of-00002.safetensors"
    os.truncate(damaged, damaged.stat().st_size - 1)
    with refused(CheckpointError, damaged, "cut short", "Copy it again"):
        quantize(model, "w8a8-rtn", tmp_path / "out")


def test_a_shard_that_is_missing(model, tmp_path):
    shard(model)
    (model / "model-00002-of-00002.safetensors").unlink()
    with refused(CheckpointError, model, "model-00002-of-00002.safetensors"):
        quantize(model, "w8a8-rtn", tmp_path / "out")


def test_a_tensor_that_no_shard_holds(model, tmp_path):
    shard(model)
    file = model / "model-00002-of-00002.safetensors"
    tensors = load_file(file)
    lost = sorted(name for name in tensors if name.endswith("_proj.weight"))[0]
    del tensors[lost]
    save_file(tensors, file)
    with refused(CheckpointError, lost):
        quantize(model, "w8a8-rtn", tmp_path / "out")


@pytest.mark.parametrize("target", ["../secret.safetensors", "/etc/passwd", "sub/model.safetensors", ".."])
def test_an_index_that_points_outside_the_folder(model, tmp_path, target):
    index = shard(model)
    shutil.copy(model / "model-00001-of-00002.safetensors", tmp_path / "secret.safetensors")
    index["weight_map"][f"{UP}.weight"] = target
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    with refused(CheckpointError, "model.safetensors.index.json", f"{UP}.weight", "points outside", target):
        quantize(model, "w8a8-rtn", tmp_path / "out")


def test_pickles_are_never_loaded(model, tmp_path):
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    with refused(CheckpointError, model, "pytorch_model.bin is a pickle", "safetensors"):
        quantize(model, "w8a8-rtn", tmp_path / "out")


@pytest.mark.parametrize("config", ["", "[]", "{", '{"model_type": "no-such-model"}', "\x00\xff"])
def test_a_config_that_is_none(model, tmp_path, config):
    (model / "config.json").write_text(config, encoding="latin-1")
    with refused(CheckpointError, model):
        quantize(model, "w8a8-rtn", tmp_path / "out")


@pytest.mark.parametrize(
    "name", ["num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size", "head_dim", "num_attention_heads"]
)
def test_a_config_with_larger_sizes_than_the_tensors(model, tmp_path, name):
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {name: 10**9}))
    with refused(CheckpointError, model / "config.json", f"{name} is 1000000000", "damaged or belongs to another"):
        quantize(model, "w8a8-rtn", tmp_path / "out")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json"])
def test_deeply_nested_json(model, tmp_path, name):
    (model / name).write_text('{"a":' * 10**5)
    with refused(CheckpointError, model):
        quantize(model, "w8a8-rtn", tmp_path / "out")


def test_an_empty_output_path(model):
    with refused(PlanError, "the path of the output is empty"):
        quantize(model, "w8a8-rtn", "")


def test_a_folder_that_is_none(tmp_path):
    with refused(PlanError, tmp_path / "nowhere", "no such model folder"):
        quantize(tmp_path / "nowhere", "w8a8-rtn", tmp_path / "out")


def test_a_folder_without_a_model(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(PlanError, match=r"no installed adapter takes .*empty"):
        quantize(tmp_path / "empty", "w8a8-rtn", tmp_path / "out")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("recipe", ["w8a8-rtn", "w4a16-gptq"])
def test_a_weight_that_is_no_number(model, data, tmp_path, recipe, value):
    change(model, f"{UP}.weight", value, (3, 5))
    with refused((CheckpointError, CalibrationError), UP):
        quantize(model, recipe, tmp_path / "out", calibration=data.calibration, samples=4, seq_len=32)


def test_an_activation_that_is_no_number(model, data, tmp_path):
    """The largest bfloat16 in a norm: its product with anything above one is infinite."""
    change(model, "model.layers.1.post_attention_layernorm.weight", 3.38e38, (slice(None),))
    with refused(CalibrationError, "model.layers.1", UP, "not finite"):
        quantize(model, "w4a16-gptq", tmp_path / "out", calibration=data.calibration, samples=4, seq_len=32)


# --- calibration -------------------------------------------------------------------------------------------------


def test_too_little_text(data, tmp_path):
    (tmp_path / "short.txt").write_text("A few words. " * 20)
    with refused(CalibrationError, "16", "64", "`samples=`"):
        quantize(
            data.model("tiny-llama"), "w4a16-gptq", tmp_path / "out",
            calibration=tmp_path / "short.txt", samples=16, seq_len=64,
        )  # fmt: skip


@pytest.mark.parametrize("ids", [[5, 6, 10**6], [5, -1, 6]])
def test_tokens_of_another_model(data, tmp_path, ids):
    tokens = np.resize(np.array(ids), (4, 32))
    with refused(CalibrationError, "token ids are between", min(ids), max(ids), "the tokenizer of this model"):
        quantize(data.model("tiny-llama"), "w4a16-gptq", tmp_path / "out", calibration=tokens, samples=4, seq_len=32)


def test_no_calibration_at_all(data, tmp_path):
    with refused(PlanError, "gptq needs calibration data", "`calibration=`"):
        quantize(data.model("tiny-llama"), "w4a16-gptq", tmp_path / "out")


def test_longer_samples_than_the_model_takes(data, tmp_path):
    with refused(PlanError, "9999", "`seq_len=`"):
        quantize(
            data.model("tiny-llama"), "w4a16-gptq", tmp_path / "out", calibration=data.calibration, seq_len=9999
        )  # fmt: skip


def test_text_without_a_tokenizer(model, data, tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (model / name).unlink()
    with refused(CalibrationError, model, "tokenizer", ".npy"):
        quantize(model, "w4a16-gptq", tmp_path / "out", calibration=data.calibration, samples=4, seq_len=32)


@pytest.mark.parametrize("recipe", ["w8a8-rtn", "w4a16-gptq"])
def test_what_fails_before_the_first_block_leaves_no_folder_behind(model, tmp_path, recipe):
    os.truncate(model / "model.safetensors", 1000)
    with pytest.raises(GoldenStickError):
        quantize(model, recipe, tmp_path / "out", calibration=np.ones((4, 32), np.int64), samples=4, seq_len=32)
    assert not (tmp_path / "out").exists()


# --- the output folder -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("name", ["thesis.tex", "model.safetensors", "config.json", "gsq_report.json"])
def test_a_folder_with_a_users_file(data, tmp_path, name, restart):
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("years of work")
    before = contents_as_they_are(out)
    with refused(OutputError, out, name):
        quantize(data.model("tiny-llama"), "w8a8-rtn", out, restart=restart)
    assert contents_as_they_are(out) == before


def contents_as_they_are(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_file_where_the_folder_should_be(data, tmp_path):
    (tmp_path / "out").write_text("a file")
    with refused(OutputError, tmp_path / "out"):
        quantize(data.model("tiny-llama"), "w8a8-rtn", tmp_path / "out")
    assert (tmp_path / "out").read_text() == "a file"


def test_the_models_own_folder(model):
    before = contents(model)
    for restart in (False, True):
        with refused(PlanError, model, "choose another folder"):
            quantize(model, "w8a8-rtn", model, restart=restart)
        assert contents(model) == before


def test_a_finished_run_is_replaced_only_on_request(data, tmp_path):
    source, out = data.model("tiny-llama"), tmp_path / "out"
    quantize(source, "w8a8-rtn", out)
    (out / "notes.txt").write_text("mine")
    finished = contents(out)
    with refused(OutputError, out, "`restart=`"):
        quantize(source, "w8a16-rtn", out)
    assert contents(out) == finished


def test_an_unfinished_run_of_another_recipe_or_model(model, data, tmp_path):
    """The source is mended between two runs: then it is another source, and blocks of both must not be mixed."""
    out, healthy = tmp_path / "out", data.model("tiny-llama")
    change(model, "model.layers.3.mlp.up_proj.weight", float("nan"), (0, 0))
    with refused(CheckpointError, "model.layers.3.mlp.up_proj"):
        quantize(model, "w8a8-rtn", out)
    unfinished = contents(out)
    assert any(name.endswith(".safetensors") for name in unfinished)

    with refused(OutputError, out, "another recipe"):
        quantize(model, "w8a16-rtn", out)
    with refused(OutputError, out, "another model", "`restart=`"):
        quantize(healthy, "w8a8-rtn", out)
    assert contents(out) == unfinished

    quantize(healthy, "w8a8-rtn", out, restart=True)
    quantize(healthy, "w8a8-rtn", tmp_path / "undisturbed")
    assert contents(out) == contents(tmp_path / "undisturbed")


# --- a full disk -------------------------------------------------------------------------------------------------

SMALL = 2 * 2**20
"""Room for the first block of the output and a part of the second."""


@pytest.fixture
def small_disk(tmp_path) -> Iterator[tuple[Path, Callable[[], None]]]:
    """A folder with little room, and what gives it more: a memory disk where mounting is allowed, and else a limit on
    the size of files."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SMALL}", "tmpfs", folder], capture_output=True)
    if mounted.returncode == 0:
        yield folder, lambda: subprocess.run(["mount", "-o", "remount,size=64m", folder], check=True) and None
        subprocess.run(["umount", folder], check=True)
        return
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SMALL // 4, before[1]))
    yield folder, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before)
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("recipe", ["w8a8-rtn", "w8a8-static-smoothquant"])
def test_a_disk_that_fills_up(data, tmp_path, small_disk, recipe):
    disk, make_room = small_disk
    source, text = data.model("tiny-llama"), {"calibration": data.calibration, "samples": 8, "seq_len": 64}
    out = disk / "out"
    for _ in range(2):  # trying again without more room changes nothing
        with refused(OutputError, out):
            quantize(source, recipe, out, **text)
        assert not list(out.rglob("*.partial"))
    kept = {p.name: p.stat().st_mtime_ns for p in out.glob("*.safetensors")}

    make_room()
    quantize(source, recipe, out, **text)
    quantize(source, recipe, tmp_path / "undisturbed", **text)
    assert contents(out) == contents(tmp_path / "undisturbed")
    assert kept == {name: (out / name).stat().st_mtime_ns for name in kept}  # finished blocks were not done again


def test_a_full_disk_is_called_one(data, small_disk):
    disk, _ = small_disk
    with pytest.raises(OutputError) as error:
        quantize(data.model("tiny-llama"), "w8a8-rtn", disk / "out")
    full = os.statvfs(disk).f_bavail * os.statvfs(disk).f_bsize < SMALL
    wanted = "Make room and run the same command again; finished blocks are kept" if full else os.strerror(errno.EFBIG)
    assert wanted in str(error.value)


# --- a damaged result --------------------------------------------------------------------------------------------


def test_a_quantized_folder_that_was_damaged_is_not_evaluated(exported, data, tmp_path):
    folder = Path(shutil.copytree(exported("tiny-llama", "w8a8-rtn"), tmp_path / "copy"))
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["config_groups"]["group_0"]["weights"]["num_bits"] = 77
    (folder / "config.json").write_text(json.dumps(config))
    with refused(CheckpointError, "num_bits 77"):
        evaluate(folder, data.evaluation)
