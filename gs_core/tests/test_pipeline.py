"""The line on the toy: what it asks of plugins, what it computes with, and what it writes."""

import json
import re

import numpy as np
import pytest

from gs_core import (
    Accumulator,
    ChannelScale,
    CheckpointError,
    Fold,
    LinearMap,
    Needs,
    PluginError,
    SiteTransform,
    calibration,
    hookimpl,
    numerics,
)
from gs_core.api import open_source
from gs_core.arrays import from_raw, to_raw
from gs_core.comparing import relative_error
from gs_core.storage import Checkpoint
from gs_core.testing import ToyAdapter
from gs_core.testing.plugins import Levelling, Plain, Rounding
from gs_core.testing.toy_block import ToyBlock
from gs_core.testing.treatment import deaf
from gs_core.watching import fake_quantizer
from gs_schemas import SCHEMES

LAYERS = ("q", "k", "v", "o", "gate", "up", "down")


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def calls(monkeypatch):
    """The blocks that ran, by index, one entry for each batch."""
    found, run = [], ToyBlock.run

    def counted(block, *arguments):
        found.append(block.index)
        return run(block, *arguments)

    monkeypatch.setattr(ToyBlock, "run", counted)
    return found


@pytest.fixture
def small_batches(monkeypatch):
    """Four batches of the eight samples."""
    monkeypatch.setattr("gs_core.calibration.tokens.TOKENS_PER_BATCH", 48)


def raw(tensor):
    stored = tensor.read()
    return stored.dtype, stored.shape, stored.data.tobytes()


# --- what is written -----------------------------------------------------------------------------------------


def test_weights_are_what_the_algorithm_said_and_the_rest_is_as_it_was(run, toy, out):
    run()
    source, written = Checkpoint(toy), Checkpoint(out)
    opened = open_source(out, adapter=ToyAdapter())
    layers = {f"blocks.{block}.{layer}" for block in range(3) for layer in LAYERS}
    assert set(opened.numbers) == layers
    for name in layers:
        weight = from_raw(source[f"{name}.weight"].read()).astype(np.float32)
        args = opened.numbers[name].scheme.weights
        wanted = numerics.dequantize(numerics.quantize_weight(weight, args, "bfloat16"))
        assert np.array_equal(opened.model.read(f"{name}.weight"), wanted)
    for name in set(source.tensors) - {f"{layer}.weight" for layer in layers}:
        assert raw(written[name]) == raw(source[name])
    config = json.loads((out / "config.json").read_text())
    quantization = config.pop("quantization_config")
    assert config == json.loads((toy / "config.json").read_text())
    assert quantization["kept"] == ["lm_head"]
    assert (out / "tokenizer.json").read_bytes() == (toy / "tokenizer.json").read_bytes()
    assert not (out / ".gsq").exists()


def test_a_layer_that_is_ignored_is_written_bit_for_bit(run, toy, out):
    run(ignore=["*.o", "blocks.1.*"])
    source, written = Checkpoint(toy), Checkpoint(out)
    ignored = ["blocks.0.o", *(f"blocks.1.{layer}" for layer in LAYERS), "blocks.2.o"]
    for name in ignored:
        assert raw(written[f"{name}.weight"]) == raw(source[f"{name}.weight"])
    assert json.loads((out / "config.json").read_text())["quantization_config"]["kept"] == [*ignored, "lm_head"]


def test_layers_of_one_block_may_have_different_algorithms_and_schemes(run, site, out):
    site("second", algorithm="other = gs_core.testing.plugins:Rounding")
    report = run(overrides=[{"match": "*.[ko]", "scheme": "W8A16", "algorithms": ["other"]}])
    rows = {row["layer"]: (row["scheme"], *row["algorithms"]) for row in report.layers}
    assert {rows[f"blocks.1.{layer}"] for layer in "ko"} == {("W8A16", "other")}
    assert {rows[f"blocks.1.{layer}"] for layer in ("q", "v", "gate", "up", "down")} == {("w int4 group 32", "round")}
    assert open_source(out, adapter=ToyAdapter()).numbers["blocks.2.k"].scheme == SCHEMES["W8A16"]


def test_what_lies_outside_the_blocks_is_cut_into_shards(run, out, monkeypatch):
    monkeypatch.setattr("gs_core.pipeline.SHARD_BYTES", 40_000)
    run()
    names = sorted(path.name for path in out.glob("*.safetensors"))
    # Three blocks; the embedding and the head, each larger than a shard, the norm between them.
    assert names[-1] == f"model-0000{len(names)}-of-0000{len(names)}.safetensors"
    assert len(names) in (5, 6)
    assert {"embed.weight", "norm.weight", "lm_head.weight"} <= set(Checkpoint(out).tensors)


def test_static_activations_are_stored_with_each_layer(run, out):
    run(scheme="W8A8_STATIC")
    checkpoint = Checkpoint(out)
    scales = {layer: from_raw(checkpoint[f"blocks.0.{layer}.input_scale"].read()) for layer in LAYERS}
    assert scales["q"] == scales["k"] == scales["v"], "what a site's layers share cannot disagree"
    assert scales["gate"] == scales["up"]
    assert len({float(scale[0]) for scale in scales.values()}) == 4
    numbers = open_source(out, adapter=ToyAdapter()).numbers["blocks.0.q"]
    assert numbers.inputs.scale == scales["q"]


# --- what is run ---------------------------------------------------------------------------------------------


def test_without_need_of_data_the_model_never_runs(run, calls):
    stages = []
    run(calibration=None, progress=lambda stage, block, blocks: stages.append((stage, block, blocks)))
    assert calls == []
    of_block = ["load", "quantize", "pack", "export"]
    assert stages == [(stage, block, 3) for block in range(3) for stage in of_block] + [("export", 3, 3)]


@pytest.mark.usefixtures("small_batches")
def test_each_block_runs_once_to_observe_and_once_to_propagate(run, calls):
    stages = []
    run(scheme="W8A8_STATIC", progress=lambda stage, block, blocks: stages.append(stage))
    assert calls == [0] * 8 + [1] * 8 + [2] * 4, "the last block has nobody to propagate to"
    assert stages[:7] == ["load", "observe", "quantize", "pack", "propagate", "export", "load"]


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize(
    ("scheme", "runs"), [("W8A8", [0] * 4 + [1] * 4 + [2] * 4), ("W8A8_STATIC", [0] * 8 + [1] * 8 + [2] * 4)]
)
def test_where_the_float_model_is_enough_each_block_runs_once(run, site, calls, monkeypatch, scheme, runs):
    """Static scales are for what arrives in the quantized model."""
    site("counting", algorithm=f"count = {__name__}:Counting")
    monkeypatch.setattr(Counting, "seen", [], raising=False)
    monkeypatch.setattr(Counting, "needs", lambda self, scheme: Needs(data=True, float_only=True))
    run(scheme=scheme, algorithms=["count"])
    assert calls == runs
    assert set(Counting.seen) == {8 * 24}


@pytest.mark.usefixtures("small_batches")
def test_a_run_to_observe_ends_when_every_site_was_heard(run, site, monkeypatch):
    site("counting", algorithm=f"count = {__name__}:Counting")
    monkeypatch.setattr(Counting, "seen", [], raising=False)
    ended, whole = [], ToyBlock.run

    def noted(block, *arguments):
        answer = whole(block, *arguments)
        ended.append(block.index)
        return answer

    monkeypatch.setattr(ToyBlock, "run", noted)
    run(scheme="W8A8", algorithms=["count"])
    assert ended.count(2) == 1, "the first batch tells that each site is come to once"
    assert ended.count(1) == 1 + 4, "propagated whole"
    assert set(Counting.seen) == {8 * 24}


def test_only_a_run_to_observe_may_round_what_it_multiplies(run, monkeypatch):
    """Not what it is compared with, nor a run for the next block, whose activations were rounded already."""
    found, whole = [], ToyBlock.run

    def noted(block, tokens, previous, on_site=None, *rest):
        found.append((getattr(on_site, "__name__", None), block.observing))
        return whole(block, tokens, previous, on_site, *rest)

    monkeypatch.setattr(ToyBlock, "run", noted)
    run(scheme="W8A8", algorithms=["centre"])
    assert {name for name, _ in found} == {None, "listen", "remember", "replace"}
    assert all(observing == (name == "listen") for name, observing in found)


def test_only_the_activations_that_are_still_needed_are_kept(run, out):
    kept = {}

    def look(stage, block, blocks):
        kept[stage, block] = {path.name for path in (out / ".gsq" / "activations").glob("*")}

    run(scheme="W8A8_STATIC", progress=look)
    assert kept["load", 0] == kept["propagate", 0] == set()
    assert kept["load", 1] == kept["propagate", 1] == {"0"}
    assert kept["export", 1] == {"0", "1"}, "until the block is recorded it may have to be done again"
    assert kept["load", 2] == kept["export", 2] == {"1"}


@pytest.mark.usefixtures("small_batches")
def test_what_cannot_be_rescaled_is_observed_again(run, calls):
    """Levelling applies four transforms. They are verified together: one run before, one after and one in working
    precision. Each is observed again."""
    run(scheme="W8A8_STATIC", algorithms=["level", "round"])
    assert calls.count(2) == 4 + 3 + 4 * 4


class Spy:
    """A wrapper that keeps what was observed at every block."""

    def __init__(self):
        self.observed = []

    @hookimpl(wrapper=True)
    def smooth(self, observed):
        self.observed.append(dict(observed))
        return (yield)


@pytest.mark.parametrize("scheme", ["W8A8", "W8A8_STATIC"])
@pytest.mark.usefixtures("small_batches")
def test_the_next_block_sees_what_the_quantized_one_returns(scheme, run, toy, tokens, out):
    spy = Spy()
    run(algorithms=["level", "round"], scheme=scheme, plugins=[spy])
    opened = open_source(out, adapter=ToyAdapter())
    block = opened.model.block(0, (tokens, None))
    feeding = [site for site in block.sites.values() if site.layers]
    inputs = {site.name: (SCHEMES[scheme], opened.numbers[site.layers[0]].inputs) for site in feeding}
    # The run computed in batches of two, and so must this: products of other shapes differ in their last bits.
    batches = calibration.batches(tokens)
    states = [{n: to_raw(a) for n, a in block.run(b, None, fake_quantizer(inputs)).items()} for b in batches]
    second, seen = ToyAdapter().open(toy, "cpu").block(1, (batches[0], states[0])), {}
    for batch, state in zip(batches, states, strict=True):
        second.run(batch, state, lambda name, x: seen.setdefault(name, []).append(np.abs(x).max(axis=0)))
    seen = {name: maxima for name, maxima in seen.items() if second.sites[name].layers}
    assert sorted(spy.observed[1]) == sorted(seen)
    for name, maxima in seen.items():
        assert np.allclose(spy.observed[1][name], np.max(maxima, axis=0), rtol=1e-5)


def test_errors_are_those_of_the_layers_own_output(run, toy, tokens):
    weight_only, quantized = run(), run(scheme="W8A8_STATIC", out=toy.parent / "static")
    model = ToyAdapter().open(toy, "cpu")
    block, seen = model.block(0, (tokens, None)), {}
    block.run(tokens, None, seen.__setitem__)
    rounded = numerics.dequantize(
        numerics.quantize_weight(model.read("blocks.0.q.weight"), SCHEMES["W8A16"].weights, "bfloat16")
    )
    assert weight_only.layers[0]["error_of"] == "weight"
    assert quantized.layers[0]["error_of"] == "output"
    assert quantized.layers[0]["tokens"] == tokens.size
    x = seen["blocks.0.q.input"]
    exact = relative_error(x @ model.read("blocks.0.q.weight").T, x @ rounded.T)
    assert quantized.layers[0]["error"] > exact, "its activations are quantized too"


# --- transforms ----------------------------------------------------------------------------------------------


def test_a_transform_leaves_the_float_function_as_it_was(run, toy, tokens, out):
    """With 8 bits nearly so for the quantized one."""
    run(algorithms=["level", "round"], scheme="W8A8")
    hidden = []
    for folder in (toy, out):
        block = open_source(folder, adapter=ToyAdapter()).model.block(0, (tokens, None))
        hidden.append(block.run(tokens, None)["hidden"])
    assert relative_error(*hidden) < 1e-3
    norms = [from_raw(Checkpoint(folder)["blocks.0.attention_norm.weight"].read()) for folder in (toy, out)]
    assert not np.array_equal(*norms), "its scale is folded into the norm"


def test_a_layer_that_is_ignored_is_scaled_like_its_neighbours(run, toy, out):
    run(algorithms=["level", "round"], scheme="W8A8", ignore=["*.k"])
    before, after = (from_raw(Checkpoint(folder)["blocks.0.k.weight"].read()).astype(float) for folder in (toy, out))
    ratio = after / before
    assert np.allclose(ratio, ratio[0], rtol=2**-7), "one scale for each input channel"
    assert np.ptp(ratio[0]) > 1


def lie(block):
    """Says that a norm reaches a site which it does not."""
    scale = np.linspace(1, 4, 64, dtype=np.float32)
    return ChannelScale(Fold(f"{block.name}.attention_norm", (f"{block.name}.gate.input",), 64), scale)


class Lying(Levelling):
    @hookimpl
    def smooth(self, block):
        return [lie(block)]


class HalfLying(Levelling):
    @hookimpl
    def smooth(self, block, observed):
        return [*super().smooth(block, observed), lie(block)]


@pytest.mark.parametrize(("honest", "liar"), [(["round"], "Lying"), (["level", "round"], "HalfLying")])
def test_a_transform_that_changes_the_function_is_dropped_and_reported(honest, liar, run, site, contents, tmp_path):
    site("liar", algorithm=f"lie = {__name__}:{liar}")
    one = run(scheme="W8A8_STATIC", algorithms=honest, out=tmp_path / "honest")
    other = run(scheme="W8A8_STATIC", algorithms=["lie", "round"], out=tmp_path / "lying")
    assert one.data["notes"] == []
    assert len(other.data["notes"]) == 3
    for b, note in enumerate(other.data["notes"]):
        where = rf"blocks\.{b}: lie at blocks\.{b}\.attention_norm → blocks\.{b}\.gate\.input was dropped"
        why = r"a channel of the float block would change by \d\.\de\+\d\d, more than 1e-09"
        assert re.fullmatch(f"{where}: {why}", note)
    written = [contents(tmp_path / name) for name in ("honest", "lying")]
    for files in written:
        del files["gsq_report.json"]
    assert written[0] == written[1], "what was dropped has left no trace"


def test_a_transform_that_the_producer_cannot_take_is_dropped_and_reported(run, monkeypatch):
    def refuse(block, transform):
        raise ValueError(f"{transform.fold.producer} is shared")

    monkeypatch.setattr(ToyBlock, "apply", refuse)
    notes = run(scheme="W8A8", algorithms=["level", "round"]).data["notes"]
    assert len(notes) == 12
    assert notes[0] == (
        "blocks.0: level at blocks.0.attention_norm → blocks.0.q.input was dropped: blocks.0.attention_norm is shared"
    )


class Dividing(Levelling):
    """Leaves a scale to be computed when the model runs."""

    @hookimpl
    def smooth(self, block):
        site = block.sites[f"{block.name}.down.input"]
        return [SiteTransform(site.name, LinearMap(scale=np.full(site.features, 2, np.float32)))]


def test_a_map_that_the_format_cannot_hold_before_a_scheme_is_dropped_and_reported(run, site, monkeypatch):
    site("divider", algorithm=f"divide = {__name__}:Dividing")
    monkeypatch.setattr(Plain, "unsupported_online", lambda plain, kind, scheme: f"no {kind} before {scheme.name}")
    notes = run(scheme="W8A8", algorithms=["divide", "round"]).data["notes"]
    assert notes == [f"blocks.{b}: divide at blocks.{b}.down.input was dropped: no scale before W8A8" for b in range(3)]


def test_a_smoother_that_finds_nothing_is_reported(run, monkeypatch):
    monkeypatch.setattr(ToyBlock, "folds", lambda block: [])
    notes = run(scheme="W8A8", algorithms=["level", "round"]).data["notes"]
    assert notes == [f"blocks.{block}: level found nowhere to fold a scale" for block in range(3)]


# --- what does not go well -----------------------------------------------------------------------------------


@pytest.fixture
def unreached(monkeypatch):
    """No token reaches the site of gate and up in the second block."""
    run = ToyBlock.run

    def partly(block, tokens, previous, on_site=None):
        return run(block, tokens, previous, deaf(on_site, "blocks.1.gate.input"))

    monkeypatch.setattr(ToyBlock, "run", partly)


@pytest.mark.usefixtures("unreached")
def test_a_layer_that_no_token_reached_is_quantized_from_its_weight_and_reported(run):
    report = run(scheme="W8A8", algorithms=["level", "round"])
    assert report.data["notes"] == [
        f"blocks.1.{layer}: no calibration token reached it; quantized from its weight alone"
        for layer in ("gate", "up")
    ]
    rows = {row["layer"]: row for row in report.layers}
    assert (rows["blocks.1.gate"]["tokens"], rows["blocks.1.gate"]["error_of"]) == (0, "weight")
    assert rows["blocks.0.gate"]["error_of"] == "output"


@pytest.mark.usefixtures("unreached")
def test_a_static_scale_cannot_be_had_where_no_token_came(run):
    with pytest.raises(
        CheckpointError, match=r"blocks\.1\.gate: its scheme has static activations, but no calibration"
    ):
        run(scheme="W8A8_STATIC")


@pytest.mark.parametrize(
    ("quantize", "message"),
    [
        (lambda self, layers: None, "'round' answered quantize with None; expected a QuantizedTensor for each of"),
        (lambda self, layers: {}, r"'round' answered quantize with \{\}; expected a QuantizedTensor for each of"),
    ],
)
def test_a_wrong_answer_names_the_plugin(quantize, message, run, monkeypatch):
    monkeypatch.setattr(Rounding, "quantize", hookimpl(quantize))
    with pytest.raises(PluginError, match=message):
        run()


def test_observers_of_one_algorithm_are_not_seen_by_another(run, site):
    """Each finds under ``observed`` what its own accumulators found."""
    site("counting", algorithm=f"count = {__name__}:Counting")
    seen = []
    Counting.seen = seen
    run(scheme="W8A8", algorithms=["level", "count"])
    assert seen == [8 * 24] * 12


class Tokens(Accumulator):
    def __init__(self):
        self.count = 0

    def update(self, x):
        self.count += x.shape[0]

    def rescale(self, scale):
        return True

    def result(self):
        return self.count


class Counting(Rounding):
    """Counts tokens."""

    seen: list

    @hookimpl
    def observe(self):
        return Tokens()

    @hookimpl
    def quantize(self, layers, observed):
        self.seen += observed.values()
        return super().quantize(layers)
