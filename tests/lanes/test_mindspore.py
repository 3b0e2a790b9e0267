"""MindSpore, in an environment of its own: the tests of the rooms that need it, and a Llama that is the same model in
both frameworks.

Where nothing but weights decides, codes are identical. Where statistics of activations do, two frameworks' last bits
differ, and a rounding at a tie falls either way: of one block's codes, given the same inputs, all but a few are the
same; through a whole model such a difference grows, as each block is calibrated on what the one before it gives.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gs_core.arrays import from_raw
from gs_core.storage import Checkpoint
from gs_schemas import SCHEMES, recipe

pytestmark = pytest.mark.lane

CHECKOUT = Path(__file__).parents[2]
WITHOUT = {"hf"}
"""Rooms that need another framework."""
TESTED = ["adapters/mindformers", "compat/golden_stick"]
SAMPLES, LENGTH, WINDOWS = 16, 256, 16
SAME = ["w4a16-rtn", "w8a16-rtn", "w8a8-rtn", "w8a8-static-rtn"]
RECIPES = [*SAME, "w4a16-gptq", "w8a8-smoothquant"]
BLOCKS = {"rtn": "W4A16", "gptq": "W4A16", "smoothquant": "W8A8", "awq": "W4A16"}
"""An algorithm, and what its blocks are quantized to."""


@pytest.fixture(scope="session")
def mindspore() -> Path:
    """The interpreter, made first if there is none yet."""
    files = [file for depth in ("*", "*/*", "*/*/*") for file in sorted(CHECKOUT.glob(f"{depth}/pyproject.toml"))]
    rooms = [str(file.parent) for file in files if file.parent.name not in WITHOUT]
    command = [sys.executable, Path(__file__).with_name("environments.py"), "mindspore", *rooms]
    return Path(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip())


@pytest.mark.parametrize("room", TESTED)
def test_the_rooms_own_tests_pass_there(mindspore, room, tmp_path):
    options = ["-q", "-m", "lane", "-p", "no:cacheprovider", "-c", CHECKOUT / "pyproject.toml"]
    command = [mindspore, "-m", "pytest", *options, CHECKOUT / room / "tests"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout[-5000:] + ran.stderr[-2000:]


# --- one model in two frameworks ---------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def both(data, tokens, engine, mindspore, tmp_path_factory):
    """The folder of what both made, and the perplexities they found: ``hf``, ``mindformers``."""
    from gs_core.calibration import load

    work = tmp_path_factory.mktemp("parity")
    calibration = load(_ids(data.calibration, data), SAMPLES, LENGTH, tokenizer=None)
    np.save(work / "tokens.npy", calibration)
    np.save(work / "windows.npy", tokens[: WINDOWS * LENGTH].reshape(WINDOWS, LENGTH))
    exact = {"calibration": {"dtype": "float32"}}  # else products may be bfloat16 here, which they are never there
    recipes = {name: recipe(name).model_dump(mode="json") | exact for name in RECIPES}
    blocks = {name: SCHEMES[scheme].model_dump(mode="json") for name, scheme in BLOCKS.items()}
    (work / "jobs.json").write_text(json.dumps({"recipes": recipes, "blocks": blocks}))
    model = data.model("tiny-llama")
    found = {"hf": engine("mindspore_parity.py", "hf", model, work)["perplexity"]}
    found["mindformers"] = engine("mindspore_parity.py", "mindformers", model, work, python=mindspore)["perplexity"]
    engine("mindspore_parity.py", "mindformers", model, work, "--live", python=mindspore)
    return work, found


def _ids(text: Path, data) -> np.ndarray:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(data.model("tiny-llama"), local_files_only=True)
    return np.array(tokenizer(text.read_text(encoding="utf-8"), add_special_tokens=False)["input_ids"])


def _bytes(folder: Path) -> dict[str, bytes]:
    return {name: tensor.read().data.tobytes() for name, tensor in Checkpoint(folder).tensors.items()}


@pytest.mark.parametrize("name", ["float", *RECIPES])
def test_it_is_the_same_model_in_both(both, name):
    _, found = both
    tolerance = 1e-6 if name == "float" else 1e-3
    assert found["mindformers"][name] == pytest.approx(found["hf"][name], rel=tolerance)


@pytest.mark.parametrize("name", SAME)
def test_codes_that_hang_on_weights_are_identical(both, name):
    work, _ = both
    theirs, ours = Checkpoint(work / "hf" / name), Checkpoint(work / "mindformers" / name)
    assert set(theirs.tensors) == set(ours.tensors)
    for tensor in theirs.tensors:
        x, y = from_raw(theirs[tensor].read()), from_raw(ours[tensor].read())
        if tensor.endswith("input_scale"):  # of activations: within one unit in the last place
            assert np.abs(x.view(np.int16).astype(int) - y.view(np.int16)).max() <= 1, tensor
        else:
            assert x.tobytes() == y.tobytes(), tensor


@pytest.mark.parametrize(("name", "share"), [("rtn", 0), ("gptq", 1e-4), ("smoothquant", 1e-5), ("awq", 1e-3)])
def test_of_a_block_given_the_same_inputs_few_codes_differ(both, name, share):
    work, _ = both
    theirs, ours = (np.load(work / adapter / f"{name}.npz") for adapter in ("hf", "mindformers"))
    assert set(theirs.files) == set(ours.files)
    codes = [n for n in theirs.files if n.endswith(".codes")]
    differing = sum(int((theirs[n] != ours[n]).sum()) for n in codes)
    of = sum(theirs[n].size for n in codes)
    print(f"{name}: {differing} of {of} codes differ")
    assert differing <= share * of


@pytest.mark.parametrize("name", RECIPES)
def test_a_live_network_gives_what_its_folder_gives(both, name):
    from gs_mindformers.names import to_mindformers

    work, _ = both
    folder = {to_mindformers(tensor): data for tensor, data in _bytes(work / "mindformers" / name).items()}
    assert _bytes(work / "mindformers-live" / name) == folder
