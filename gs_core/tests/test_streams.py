"""The calibration data as an algorithm that learns is given it: both streams, and what the float block returns."""

import json

import numpy as np
import pytest

from gs_core import Data, hookimpl
from gs_core.arrays import from_raw
from gs_core.testing import ToyAdapter
from gs_core.testing.plugins import Centring, Levelling, Rounding


@pytest.fixture
def given(monkeypatch):
    """Copies of the data that ``Centring`` was given, by block."""
    found, quantize = {}, Centring.quantize

    @hookimpl
    def keep(self, block, layers, observed, data, record):
        copied = [
            [(t, None if p is None else from_raw(p["hidden"])) for t, p in s] for s in (data.batches, data.floats)
        ]
        found[block.index] = Data(*copied, [from_raw(t["hidden"]) for t in data.targets], as_seen=data.as_seen)
        return quantize(self, block, layers, observed, data, record)

    monkeypatch.setattr(Centring, "quantize", keep)
    return found


def floating(toy, tokens):
    """What each block of the float model returns."""
    model, returned = ToyAdapter().open(toy, "cpu"), []
    for index in range(3):
        batch = (tokens, {"hidden": returned[-1]} if index else None)
        returned.append(model.block(index, batch).run(*batch)["hidden"])
    return returned


@pytest.fixture
def returned(toy, tokens):
    from gs_core.arrays import to_raw

    model, previous, found = ToyAdapter().open(toy, "cpu"), None, []
    for index in range(3):
        previous = {"hidden": to_raw(model.block(index, (tokens, previous)).run(tokens, previous)["hidden"])}
        found.append(from_raw(previous["hidden"]))
    return found


def test_the_float_stream_is_what_the_float_model_computes(run, given, returned, tokens):
    run(algorithms=["level", "centre"], scheme="W8A8")
    for index, data in given.items():
        ((seen, before),) = data.floats
        assert np.array_equal(seen, tokens)
        assert np.array_equal(data.targets[0], returned[index]), "though the block was smoothed since"
        if index:
            assert np.array_equal(before, returned[index - 1])
            assert not np.array_equal(data.batches[0][1], before), "the other stream is quantized"
    assert given.keys() == {0, 1, 2}


def test_batches_are_counted_from_both_ends(run, monkeypatch):
    def check(self, block, layers, observed, data, record):
        assert np.array_equal(data.batches[-1][0], data.batches[len(data.batches) - 1][0])
        assert [t.tolist() for t, _ in data.batches[:2]] == [t.tolist() for t, _ in list(data.batches)[:2]]
        with pytest.raises(IndexError):
            data.targets[len(data.targets)]
        return Rounding.quantize(self, layers)

    monkeypatch.setattr(Centring, "quantize", hookimpl(check))
    monkeypatch.setattr("gs_core.calibration.tokens.TOKENS_PER_BATCH", 48)
    run(algorithms=["centre"])


def test_pairs_are_of_the_same_tokens_and_facts_are_reported(run, toy):
    report = run(algorithms=["centre"]).data
    assert json.loads(json.dumps(report["records"])) == report["records"]
    assert [(r["block"], r["algorithm"]) for r in report["records"]] == [(f"blocks.{i}", "centre") for i in range(3)]
    first, second, _ = report["records"]
    assert set(first["moved"].values()) == {0.0}, "nothing before the first block is quantized"
    assert first["errors"] == [0.0]
    assert min(second["moved"].values()) > 0
    assert second["errors"][0] > 0


def test_activations_are_given_as_the_engine_will_see_them(run, given):
    run(algorithms=["centre"], scheme="W8A8_STATIC")
    x = np.linspace(-1, 1, 64, dtype=np.float32)[None]
    seen = given[1].as_seen("blocks.1.q.input", x)
    assert seen is not None
    assert len(np.unique(seen)) < 64
    run(algorithms=["centre"], restart=True)
    assert given[1].as_seen("blocks.1.q.input", x) is None


def test_without_the_wish_nothing_is_kept(run, monkeypatch):
    def check(self, data):
        assert len(data.batches) == 1
        assert (data.floats, data.targets) == ((), ())
        return []

    monkeypatch.setattr(Levelling, "smooth", hookimpl(check))
    run(algorithms=["level", "round"], scheme="W8A8")
