"""Divergence from the float model's predictions, compared with direct computation."""

import json
import math

import numpy as np
import pytest

from gs_core import CheckpointError, PlanError, compare, evaluate
from gs_core.api import open_source
from gs_core.arrays import from_raw, to_raw
from gs_core.cli.evaluating import comparison_data
from gs_core.divergence import BlockComparison, ChannelErrors, bad_blocks
from gs_core.evaluation import online
from gs_core.predictions import tiles
from gs_core.storage import Checkpoint, write_safetensors
from gs_core.testing import ToyAdapter, write_toy

TEXT = np.random.default_rng(1).integers(0, 256, 1000)
WINDOWS = TEXT[: 6 * 20].reshape(6, 20)


def compared(model, against):
    return compare(model, against, TEXT, seq_len=20, windows=6, adapter=ToyAdapter())


def change(folder, **changes):
    """Change weights of a float toy: ``change(folder, name=function)``, a dot in the name as two underscores."""
    tensors = {name: from_raw(tensor.read()).copy() for name, tensor in Checkpoint(folder).tensors.items()}
    for name, function in changes.items():
        name = name.replace("__", ".")
        tensors[name] = function(tensors[name]).astype(np.float32)
    for shard in folder.glob("*.safetensors*"):
        shard.unlink()
    write_safetensors(folder / "model.safetensors", tensors.items())
    return folder


@pytest.fixture
def toy(tmp_path):
    return write_toy(tmp_path / "toy", dtype="float32", blocks=3, hidden=64, intermediate=96)


def predictions(folder, quantized_block=None, other=None) -> np.ndarray:
    """Log-probabilities, ``(windows, positions, vocabulary)``, of the whole toy; one block may be another folder's."""
    opened = open_source(folder, adapter=ToyAdapter())
    second = opened if other is None else open_source(other, adapter=ToyAdapter())
    state = None
    for index in range(len(opened.model.blocks)):
        source = second if index == quantized_block else opened
        block = source.model.block(index, (WINDOWS, state))
        block.online = online(block, source)
        state = {name: to_raw(array) for name, array in block.run(WINDOWS, state).items()}
    logits = opened.model.logits(WINDOWS, state)[:, :-1].astype(np.float64)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def divergence(wanted, got) -> float:
    return float((np.exp(wanted) * (wanted - got)).sum(axis=-1).mean())


def test_a_model_does_not_diverge_from_itself(toy):
    found = compared(toy, toy)
    assert (found.divergence, found.divergence_p99, found.top1_agreement, found.ratio) == (0, 0, 1, 1)
    assert [(b.sqnr, b.propagated_sqnr, b.divergence) for b in found.blocks] == [(math.inf, math.inf, 0)] * 3
    assert found.notes == ()
    blocks = json.loads(json.dumps(comparison_data(found), allow_nan=False))["blocks"]
    assert blocks[0] == {"block": "blocks.0", "sqnr": None, "propagated_sqnr": None, "divergence": 0}


def test_divergence_is_of_kullback_and_leibler_from_the_float_model(run, toy, tmp_path):
    run(toy, tmp_path / "out")
    found = compared(tmp_path / "out", toy)
    wanted, got = predictions(toy), predictions(tmp_path / "out")
    assert found.divergence == pytest.approx(divergence(wanted, got), rel=1e-4)
    assert found.top1_agreement == np.mean(wanted.argmax(-1) == got.argmax(-1)) < 1
    means = (np.exp(wanted) * (wanted - got)).sum(-1).mean(-1)
    assert found.standard_error == pytest.approx(means.std(ddof=1) / 6**0.5, rel=1e-3)
    one = evaluate(tmp_path / "out", TEXT, seq_len=20, windows=6, adapter=ToyAdapter())
    assert (found.model, found.against.scheme) == (one, "float")


def test_divergence_of_a_block_is_that_of_the_model_with_only_this_block_quantized(run, toy, tmp_path):
    run(toy, tmp_path / "out")
    found = compared(tmp_path / "out", toy)
    wanted = predictions(toy)
    for index, block in enumerate(found.blocks):
        alone = predictions(toy, index, tmp_path / "out")
        assert block.divergence == pytest.approx(divergence(wanted, alone), rel=1e-4)
        assert block.block == f"blocks.{index}"


def test_the_noise_of_a_block_alone_does_not_contain_that_of_the_blocks_before_it(toy, tmp_path):
    damaged = change(
        write_toy(tmp_path / "out", dtype="float32", blocks=3, hidden=64, intermediate=96),
        blocks__1__up__weight=lambda w: 1.1 * w,
    )
    first, second, third = compared(damaged, toy).blocks
    assert (first.sqnr, third.sqnr) == (math.inf, math.inf)
    assert second.sqnr == second.propagated_sqnr < math.inf
    assert third.propagated_sqnr < math.inf
    assert (first.divergence, third.divergence) == (0, 0)
    assert second.divergence > 0


def test_batches_and_slices_of_predictions_do_not_matter(run, toy, tmp_path, monkeypatch):
    run(toy, tmp_path / "out")
    whole = compared(tmp_path / "out", toy)
    monkeypatch.setattr("gs_core.predictions.MAX_LOGIT_BYTES", 7 * 256 * 4)
    monkeypatch.setattr("gs_core.predictions.MAX_PROBABILITIES", 3 * 256)
    assert compared(tmp_path / "out", toy).divergence == pytest.approx(whole.divergence, rel=1e-6)
    monkeypatch.setattr("gs_core.calibration.tokens.TOKENS_PER_BATCH", 40)
    assert compared(tmp_path / "out", toy).divergence == pytest.approx(whole.divergence, rel=1e-6)


@pytest.mark.parametrize("limit", [1, 7, 50, 10**6])
def test_slices_cover_every_prediction_once(limit, monkeypatch):
    monkeypatch.setattr("gs_core.predictions.MAX_LOGIT_BYTES", limit * 4 * 256)
    seen = np.zeros((6, 19), int)
    for rows, columns in tiles(6, 19, 256):
        assert seen[rows, columns].size <= max(limit, 1)
        seen[rows, columns] += 1
    assert (seen == 1).all()


def test_a_rotated_residual_stream_is_compared_in_the_float_models_basis(run, toy, tmp_path):
    """The sum of the divergences of single blocks is about the divergence of the model."""
    run(toy, tmp_path / "out", algorithms=["turn", "round"])
    found = compared(tmp_path / "out", toy)
    assert all(block.sqnr > 5 for block in found.blocks)
    total = sum(block.divergence for block in found.blocks)
    assert total == pytest.approx(found.divergence, rel=0.5)


def test_blocks_in_an_unknown_basis_are_not_compared(run, toy, tmp_path):
    run(toy, tmp_path / "out", algorithms=["turn", "round"])
    (tmp_path / "out" / "gsq_report.json").unlink()
    found = compared(tmp_path / "out", toy)
    assert found.divergence > 0
    assert {(b.sqnr, b.propagated_sqnr, b.divergence) for b in found.blocks} == {(None, None, None)}
    assert "different bases" in found.notes[0]


def test_a_signal_to_noise_ratio_is_the_mean_over_channels():
    """A massive channel does not hide the others."""
    errors = ChannelErrors()

    def state(*values):
        return {"hidden": to_raw(np.array([[values]], np.float32))}

    errors.update(state(1000.0, 1.0, 0.0), state(1001.0, 1.1, 0.0))
    assert errors.sqnr() == pytest.approx((60 + 20) / 2, abs=1e-4)


def test_a_block_that_leaves_most_of_the_divergence_is_named_with_advice():
    def rows(*values):
        return [BlockComparison(f"blocks.{n}", 20.0, 20.0, value) for n, value in enumerate(values)]

    (note,) = bad_blocks(rows(0.002, 0.09, 0.001, 0.003))
    assert note.startswith("blocks.1: divergence 0.09, 94 % of the sum over all blocks")
    assert 'ignore: [lm_head, "blocks.1.*"]' in note
    assert bad_blocks(rows(0.02, 0.03, 0.02, 0.03)) == [], "all alike"
    assert bad_blocks(rows(2e-5, 9e-4, 1e-5, 3e-5)) == [], "too little to matter"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"vocabulary": 128}, "has a vocabulary of 256 tokens, .* of 128: the divergence"),
        ({"blocks": 2}, "has 3 blocks, .* has 2: blocks cannot be compared"),
    ],
)
def test_models_that_cannot_be_compared(given, message, toy, tmp_path):
    sizes = {"dtype": "float32", "blocks": 3, "hidden": 64, "intermediate": 96} | given
    other = write_toy(tmp_path / "other", **sizes)
    with pytest.raises(PlanError, match=message):
        compared(toy, other)


def test_the_first_block_that_is_not_finite_is_named(toy, tmp_path):
    damaged = change(
        write_toy(tmp_path / "out", dtype="float32", blocks=3, hidden=64, intermediate=96),
        blocks__1__down__weight=lambda w: w * np.nan,
    )
    message = r"the output of blocks\.1 contains NaN or infinity"
    with pytest.raises(CheckpointError, match=message):
        compared(damaged, toy)
    with pytest.raises(CheckpointError, match=message):
        evaluate(damaged, TEXT, seq_len=20, windows=6, adapter=ToyAdapter())


def test_predictions_that_are_not_finite_are_an_error(toy):
    change(toy, lm_head__weight=lambda w: w * np.nan)
    with pytest.raises(CheckpointError, match="the predictions contain NaN or infinity, but the output of every block"):
        evaluate(toy, TEXT, seq_len=20, windows=6, adapter=ToyAdapter())
