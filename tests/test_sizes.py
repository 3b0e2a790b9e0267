"""The planned size is the written size."""

import json

import pytest

from gs_core import plan, quantize
from gs_core.planning import planned_bytes
from gs_core.report import Report
from gs_schemas import SCHEMES, Recipe

W4A8 = {
    "weights": {"format": "int4", "granularity": "group", "group_size": 128},
    "inputs": {"format": "int8", "granularity": "token", "dynamic": True},
}


@pytest.fixture
def written(data, tmp_path):
    """The report of a run, and the planned bytes of its tensors."""

    def run(recipe: Recipe, source=None) -> tuple[Report, int]:
        model, texts = source or data.model("tiny-llama"), {"samples": 2, "seq_len": 32}
        foreseen = planned_bytes(plan(model, recipe))
        return quantize(model, recipe, tmp_path / "out", calibration=data.calibration, **texts), foreseen

    return run


OF_LAYERS = [name for name, scheme in SCHEMES.items() if scheme.weights and not scheme.kv_cache]
LAYOUTS = [("compressed_tensors", name) for name in OF_LAYERS if name != "W4A4_CHANNEL"]
LAYOUTS += [("compressed_tensors", "W4A8"), ("ascend", "W4A4_CHANNEL"), ("golden_stick", "W8A8_STATIC")]


@pytest.mark.parametrize(("format", "scheme"), LAYOUTS)
def test_the_planned_size_is_the_written_size(written, format, scheme):
    numbers = W4A8 if scheme == "W4A8" else scheme
    report, foreseen = written(Recipe.parse({"scheme": numbers, "algorithms": ["rtn"], "format": format}))
    assert foreseen == pytest.approx(report.data["bytes_after"], rel=0.01)


def test_a_quantized_source_is_announced_with_its_size_on_disk(written, exported):
    source = exported("tiny-llama", "w8a8-rtn")
    report, _ = written(Recipe.parse({"scheme": "W4A16", "algorithms": ["rtn"]}), source)
    index = json.loads((source / "model.safetensors.index.json").read_text())
    assert report.data["bytes_before"] == index["metadata"]["total_size"]
    assert report.data["source_schemes"] == "W8A8"
