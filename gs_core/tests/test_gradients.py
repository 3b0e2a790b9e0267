"""Gradients of the model's loss at what each block returns, found with one block in memory."""

import numpy as np
import pytest

from gs_core import Needs, PlanError, gradients, hookimpl
from gs_core.arrays import from_raw, to_raw
from gs_core.journal import Journal
from gs_core.testing import ToyAdapter
from gs_core.testing.plugins import Centring
from gs_core.testing.suite import installed, maker

if not installed(("torch",)):
    pytest.skip("needs torch", allow_module_level=True)
ADAPTER = ToyAdapter(maker("torch"))


@pytest.fixture
def journal(tmp_path):
    return Journal(tmp_path / "out", {})


@pytest.fixture
def loads(monkeypatch, model):
    """The indices of the blocks that are loaded."""
    found, load = [], model.block
    monkeypatch.setattr(model, "block", lambda index, probe: found.append(index) or load(index, probe))
    return found


@pytest.fixture
def model(toy):
    return ADAPTER.open(toy, "cpu")


def quiet(stage, block, blocks):
    assert stage == "gradients" and block < blocks


def read(journal, index, tokens):
    given = gradients.Gradients(journal, index, [tokens], [(tokens, None)])
    return np.concatenate([from_raw(gradient["hidden"]) for _, gradient in given])


def whole(model, tokens):
    """What autograd finds when all blocks are in memory: the gradient at what each returns, sample by sample."""
    found = []
    for number in range(len(tokens)):
        sample = tokens[number : number + 1]
        blocks = [model.block(index, (sample, None)) for index in range(3)]
        returned = [blocks[0]._compute(blocks[0]._arriving(sample, None), None, {}).requires_grad_()]
        for block in blocks[1:]:
            returned.append(block._compute(returned[-1], None, {}))
        for value in returned:
            value.retain_grad()
        last = {"hidden": to_raw(returned[-1].detach().float())}
        returned[-1].backward(model.loss_gradient(sample, last, number)["hidden"].double())
        found.append([value.grad.numpy() for value in returned])
    return [np.concatenate(each) for each in zip(*found, strict=True)]


def test_they_are_those_of_the_whole_model(model, journal, tokens):
    gradients.prepare(model, journal, [tokens], 0, quiet)
    for index, wanted in enumerate(whole(model, tokens)):
        np.testing.assert_allclose(read(journal, index, tokens), wanted, rtol=1e-3, atol=1e-5 * np.abs(wanted).max())


def test_nothing_else_stays_on_disk(model, journal, tokens):
    gradients.prepare(model, journal, [tokens], 1, quiet)
    kept = sorted(folder.name for folder in (journal.folder / "activations").iterdir())
    assert kept == [f"1{gradients.GRADIENT}", f"2{gradients.GRADIENT}"]


def test_every_visit_of_a_block_is_a_step(model, journal, tokens):
    steps = []
    gradients.prepare(model, journal, [tokens], 1, lambda *step: steps.append(step))
    assert steps == [("gradients", done, 4) for done in range(4)], "three forward, and from the last to the second"


def test_they_are_found_once(model, journal, tokens, loads):
    gradients.prepare(model, journal, [tokens], 0, quiet)
    assert loads == [0, 1, 2, 2, 1], "forwards and back, as far as is asked for"
    before = read(journal, 0, tokens)
    gradients.prepare(model, journal, [tokens], 0, quiet)
    assert len(loads) == 5
    next((journal.folder / "activations" / f"1{gradients.GRADIENT}").iterdir()).unlink()
    gradients.prepare(model, journal, [tokens], 0, quiet)
    assert len(loads) == 10 and np.array_equal(read(journal, 0, tokens), before)


@pytest.mark.parametrize(("samples", "seq_len", "taken"), [(8, 24, 8), (128, 256, 32), (100, 256, 34), (4, 16384, 1)])
def test_a_part_of_the_samples_is_taken_spread_evenly(samples, seq_len, taken):
    batches = np.array_split(np.zeros((samples, seq_len), np.int64), 4)
    found = gradients.picks(batches)
    assert len(found) == taken
    assert found[0] == (0, slice(0, 1))
    assert taken == 1 or found[-1][0] == 3


@pytest.fixture
def asking(monkeypatch):
    """``Centring`` asks for gradients, too; returns what it was given by block: samples, and gradients."""
    found, quantize = {}, Centring.quantize

    @hookimpl
    def keep(self, block, layers, observed, data, record):
        tokens, gradients = [], []
        for number, ((arrived, previous), gradient) in enumerate(data.gradients):
            tokens.append(arrived)
            gradients.append(from_raw(gradient["hidden"]))
            if previous is not None:
                floats = from_raw(data.floats[0][1]["hidden"])
                assert np.array_equal(from_raw(previous["hidden"]), floats[number : number + 1])
        found[block.index] = np.concatenate(tokens), np.concatenate(gradients)
        return quantize(self, block, layers, observed, data, record)

    needs = Needs(data=True, gradient=True, float_stream=True, loss=True)
    monkeypatch.setattr(Centring, "quantize", keep)
    monkeypatch.setattr(Centring, "needs", lambda self, scheme: needs)
    return found


def test_an_algorithm_is_given_them_beside_the_float_stream(run, asking, toy, tokens):
    run(algorithms=["centre"], adapter=ADAPTER)
    wanted = whole(ADAPTER.open(toy, "cpu"), tokens)
    for index, (seen, got) in asking.items():
        assert np.array_equal(seen, tokens)
        np.testing.assert_allclose(got, wanted[index], rtol=1e-3, atol=1e-5 * np.abs(wanted[index]).max())
    assert asking.keys() == {0, 1, 2}


def test_a_run_that_is_cut_short_goes_on_with_them(goes_on, asking):
    goes_on(algorithms=["centre"], adapter=ADAPTER)


def test_blocks_that_cannot_be_differentiated_are_refused_before_anything_runs(run, asking):
    with pytest.raises(PlanError, match="needs gradients"):
        run(algorithms=["centre"])
