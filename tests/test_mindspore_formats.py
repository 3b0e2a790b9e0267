"""One quantized model in the layouts of MindSpore's and Ascend's engines: the same numbers as in compressed-tensors."""

import json

import numpy as np
import pytest

from gs_core import quantize
from gs_core.api import open_source
from gs_core.arrays import from_raw
from gs_core.discovery import load
from gs_core.storage import Checkpoint


@pytest.fixture(scope="module")
def written(data, tmp_path_factory):
    """``(recipe, format)``: the folder, made once, from little calibration."""
    made = {}

    def write(recipe: str, name: str):
        if (recipe, name) not in made:
            made[recipe, name] = tmp_path_factory.mktemp(f"{recipe}-{name}")
            texts = {"calibration": data.calibration, "samples": 4, "seq_len": 64}
            quantize(data.model("tiny-llama-outliers"), recipe, made[recipe, name], format=name, **texts)
        return made[recipe, name]

    return write


@pytest.mark.parametrize(
    ("recipe", "name"),
    [
        ("w8a8-static-smoothquant", "golden_stick"),
        ("w8a8-static-smoothquant", "golden_stick_network"),
        ("w8a8-static-smoothquant", "golden_stick_ckpt"),
        ("w8a8-static-smoothquant", "ascend"),
        ("w8a8-rtn", "ascend"),
        ("w4a16-rtn", "golden_stick"),
    ],
)
def test_the_same_numbers_in_every_layout(written, recipe, name):
    (theirs, numbers), (ours, also) = (read(written(recipe, form), form) for form in ("compressed_tensors", name))
    assert sorted(theirs.tensors) == sorted(ours.tensors)
    assert {layer: n.scheme for layer, n in numbers.items()} == {layer: n.scheme for layer, n in also.items()}
    for layer, of in numbers.items():
        if of.inputs is not None:
            np.testing.assert_array_equal(of.inputs.scale, also[layer].inputs.scale)
    for tensor in theirs.tensors:
        first, second = (from_raw(checkpoint[tensor].read()) for checkpoint in (theirs, ours))
        np.testing.assert_array_equal(first, second)


def read(folder, name):
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return load("format", name)().read(Checkpoint(folder), config)


def test_a_folder_without_a_quantization_config_opens_as_a_quantized_one(written):
    opened = open_source(written("w8a8-rtn", "golden_stick"))
    assert len(opened.numbers) == len(opened.model.layers)
