"""Transforms on the line: planned, verified, observed, packed, written, read back, and resumed."""

from dataclasses import replace

import numpy as np
import pytest

from gs_core import Algorithm, Block, Data, LayerInfo, PlanError, SiteTransform, api, evaluation, hookimpl
from gs_core.hookspecs import Record
from gs_core.interfaces import Transform
from gs_core.storage import Checkpoint, read_header
from gs_core.testing import ToyAdapter
from gs_core.testing.plugins import Plain, Turning, turn
from gs_core.testing.suite import after
from gs_core.testing.toy import ToyModel
from gs_schemas import Recipe

TEXT = np.random.default_rng(1).integers(0, 256, 1000)
TURNED = {"algorithms": ["turn", "round"], "scheme": "W8A8"}


def losses(folder) -> np.ndarray:
    """Of every token, as a folder says that it is computed but for the rounding of activations."""
    opened = api.open_source(folder, adapter=ToyAdapter())
    batch = (TEXT[:200].reshape(10, 20), None)
    for index in range(len(opened.model.blocks)):
        block = opened.model.block(index, batch)
        block.online = evaluation.online(block, opened)
        batch = after(block, batch)
    return opened.model.losses(*batch)


def problems(folder, **fields) -> list[str]:
    with pytest.raises(PlanError) as caught:
        api.plan(folder, Recipe.parse({"format": "plain"} | TURNED | fields), adapter=ToyAdapter())
    return caught.value.problems


def test_a_turned_model_is_written_as_it_computes(run, toy, tmp_path, monkeypatch):
    """Its stream is rotated, and with eight bits it says of every token what the float model says; without what is
    left to be computed it would not."""
    run(**TURNED)
    wanted = losses(toy)
    error = np.abs(losses(tmp_path / "out") - wanted).mean()
    assert error < 0.05
    before, after = (Checkpoint(folder)["embed.weight"].read().data for folder in (toy, tmp_path / "out"))
    assert not np.array_equal(before, after)
    monkeypatch.setattr("gs_core.testing.plugins._online", lambda *arguments: None)
    assert np.abs(losses(tmp_path / "out") - wanted).mean() > 5 * error


def test_maps_are_stored_with_their_layers_and_told_in_the_report(run, tmp_path):
    rows = {row["layer"]: row for row in run(**TURNED).layers}
    described = {"kind": "kronecker", "sizes": [8, 12], "identity": [False, False], "scaled": False}
    assert rows["blocks.1.down"]["online"] == described
    assert "online" not in rows["blocks.1.up"]
    stored = read_header(tmp_path / "out" / "model-00002-of-00004.safetensors")
    assert {n for n in stored if "online" in n} == {f"blocks.1.down.online_factor_{i}" for i in (0, 1)}


def test_what_is_observed_after_a_transform_is_what_arrives_then(run, monkeypatch):
    """Static scales are those of the rotated activations, seen again where they could not be computed."""
    seen: list[str] = []

    class Watching:
        @hookimpl(wrapper=True)
        def smooth(self):
            seen.append("smooth")
            return (yield)

        @hookimpl(wrapper=True)
        def observe(self):
            seen.append("observe")
            return (yield)

    run(algorithms=["turn", "level", "round"], scheme="W8A8_STATIC", plugins=[Watching()])
    assert seen[:2] == ["smooth", "observe"], "what needs no data comes before the data are looked at"


def test_a_run_that_was_cut_short_goes_on_to_the_same_bytes(goes_on):
    goes_on(**TURNED)


def test_a_map_at_an_input_that_a_float_layer_shares_is_dropped_and_reported(run):
    """No engine would send that layer's input through it."""
    notes = run(ignore=["lm_head", "*.down"], **TURNED).data["notes"]
    assert sum("blocks.1.down stays" in note or "stays in floating point" in note for note in notes) == 3


class Clipping(Algorithm):
    """The pair before ``down`` keeps half of each token's range; one that would keep a quarter is asked about first."""

    @hookimpl
    def smooth(self, block: Block, data: Data, record: Record) -> list[Transform]:
        site = block.sites[f"{block.name}.down.input"]
        asked = [SiteTransform(site.name, replace(turn(site.features), keep=keep)) for keep in (0.25, 0.5)]
        record(refusals=[data.refusal(transform) for transform in asked])
        return asked[1:]

    def leaves_online(self, layer: LayerInfo, hidden: int) -> dict[str, str]:
        return {"clipped": "clip less"}


@pytest.fixture
def clipping(site, monkeypatch):
    """The kit's plain format, which takes maps that keep half."""
    site("clipper", algorithm=f"clip = {__name__}:Clipping")

    def unsupported(plain, map, layer, scheme):
        return None if map.keep == 0.5 else f"{layer.name} keeps {map.keep}"

    monkeypatch.setattr(Plain, "unsupported_map", unsupported)
    return {"scheme": "W8A8", "algorithms": ["clip", "round"]}


def test_what_a_map_keeps_of_a_range_is_written_and_computed(run, toy, tmp_path, clipping, monkeypatch):
    """The last block is rounded as it will be read: half of each token's range, seen in its error."""
    errors = {row["layer"]: row["error"] for row in run(**clipping).layers}
    assert errors["blocks.1.down"] > 100 * errors["blocks.1.up"]
    evaluated = evaluation.evaluate(tmp_path / "out", TEXT, seq_len=20, windows=10, adapter=ToyAdapter()).perplexity
    monkeypatch.setattr("gs_core.testing.plugins._online", lambda *arguments: replace(turn(96), keep=1.0))
    whole = evaluation.evaluate(tmp_path / "out", TEXT, seq_len=20, windows=10, adapter=ToyAdapter()).perplexity
    assert abs(evaluated - whole) > 1e-3 * whole


def test_an_algorithm_may_ask_what_would_be_dropped(run, clipping):
    report = run(**clipping).data
    assert not [note for note in report["notes"] if "was dropped" in note]
    assert [r["refusals"] for r in report["records"]] == [[f"blocks.{n}.down keeps 0.25", None] for n in range(3)]


# --- what cannot be done -----------------------------------------------------------------------------------------


def test_a_format_that_holds_no_such_map_is_a_problem_of_the_plan(toy, plugins, monkeypatch):
    monkeypatch.setattr(Plain, "holds_online", frozenset({"hadamard"}))
    (problem,) = problems(toy)
    assert "algorithm 'turn': this checkpoint format holds no kronecker" in problem
    assert problem.endswith("use another algorithm")


def test_an_impossible_rotation_is_left_out_unless_it_is_required(toy, plugins, monkeypatch):
    def refuse(model, rotation):
        raise ValueError("its norms subtract the mean")

    monkeypatch.setattr(ToyModel, "rotate", refuse)
    recipe = Recipe.parse({"format": "plain"} | TURNED)
    made = api.plan(toy, recipe, adapter=ToyAdapter())
    left_out = "turn: the rotation of the residual stream is left out: its norms subtract the mean"
    assert left_out in made.warnings, "planning continues without it"
    monkeypatch.setattr("gs_core.testing.plugins.Turning.residual_required", True)
    (problem,) = problems(toy)
    assert "'turn' rotates the residual stream: its norms subtract the mean" in problem


def test_one_algorithm_rotates_the_stream(toy, plugins, site):
    site("another", algorithm="spin = gs_core.testing.plugins:Turning")
    (problem,) = problems(toy, algorithms=["turn", "spin", "round"])
    assert problem.startswith("turn and spin both rotate the residual stream")


def test_a_checkpoint_with_maps_is_not_quantized_again(run, tmp_path):
    run(**TURNED)
    with pytest.raises(PlanError, match="quantize the float model instead"):
        run(source=tmp_path / "out", out=tmp_path / "again")


def test_remarks_are_warnings_of_the_plan(toy, plugins):
    made = api.plan(toy, Recipe.parse({"format": "plain"} | TURNED), adapter=ToyAdapter())
    assert "turn: turns 21 layers" in made.warnings


def test_the_kits_rotation_is_one():
    whole = turn(64).dense(64)
    assert np.allclose(whole @ whole.T, np.eye(64), atol=1e-5)
    assert isinstance(Turning().residual(64), type(turn(64)))
