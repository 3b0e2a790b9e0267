"""A layer with a large quantization error is reported, with advice that reduces the error."""

import numpy as np
import pytest

from gs_core.arrays import from_raw
from gs_core.storage import Checkpoint, write_safetensors
from gs_core.testing import write_toy
from gs_schemas import Recipe

BAD = "blocks.1.down"


@pytest.fixture
def planted(tmp_path):
    """A toy with one massive, unused input feature of a down layer. Its scale leaves no codes for the others."""
    folder = write_toy(tmp_path / "planted", dtype="float32", blocks=3, hidden=64, intermediate=96)
    tensors = {name: from_raw(tensor.read()).copy() for name, tensor in Checkpoint(folder).tensors.items()}
    tensors["blocks.1.up.weight"][7] *= 3000
    tensors[f"{BAD}.weight"][:, 7] = 0
    write_safetensors(folder / "model.safetensors", tensors.items())
    return folder


def test_a_planted_bad_layer_is_reported_and_the_advice_reduces_its_error(run, planted, tmp_path):
    report = run(planted, scheme="W8A8_STATIC")
    (note,) = report.data["notes"]
    assert note.startswith(f"{BAD}: large output error, ")
    assert "W8A8_STATIC usually has less than 2 %" in note
    assert f"add to overrides: [{{match: {BAD}, scheme: W8A8}}]. Or add to ignore" in note
    assert note.endswith(f"[{BAD}]")

    dynamic = run(planted, tmp_path / "dynamic", scheme="W8A8_STATIC", overrides=[{"match": BAD, "scheme": "W8A8"}])
    (note,) = dynamic.data["notes"]
    assert f"{{match: {BAD}, scheme: W8A16}}" in note, "a scale per token is not enough here"
    weights = run(planted, tmp_path / "w8", scheme="W8A8_STATIC", overrides=[{"match": BAD, "scheme": "W8A16"}])
    floating = run(planted, tmp_path / "float", scheme="W8A8_STATIC", ignore=["lm_head", BAD])
    assert weights.data["notes"] == floating.data["notes"] == []


@pytest.mark.parametrize("scheme", ["W8A8_STATIC", "W8A8", "W8A16"])
def test_a_good_run_has_no_notes(run, toy, scheme):
    assert run(scheme=scheme).data["notes"] == []


def test_advice_names_all_layers_that_share_an_input(run, toy, tmp_path):
    """Engines fuse q, k and v, so advice for one of them names all three."""
    report = run(scheme={"weights": {"format": "int2", "granularity": "tensor"}})
    note = next(note for note in report.data["notes"] if note.startswith("blocks.0.k:"))
    assert "[{match: blocks.0.q, scheme: W8A16}, {match: blocks.0.k, scheme: W8A16}, {match: blocks.0.v" in note
    assert Recipe.parse({"scheme": "W8A16", "algorithms": ["rtn"], "ignore": ["lm_head", "blocks.0.q"]})


def test_notes_are_sorted_by_error(run, toy):
    report = run(scheme={"weights": {"format": "int2", "granularity": "tensor"}})
    errors = {row["layer"]: row["error"] for row in report.layers}
    named = [errors[note.partition(":")[0]] for note in report.data["notes"]]
    assert len(named) > 1
    assert named == sorted(named, reverse=True)
    assert np.isfinite(named).all()
