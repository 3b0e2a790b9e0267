"""Mixed precision: what is measured, what is left to be chosen, and the recipe that comes of it."""

import numpy as np
import pytest

from gs_core import Allocator, PlanError, api
from gs_core.allocation import allocate, allocator_of
from gs_core.testing import ToyAdapter
from gs_schemas import QuantizationArgs, QuantizationScheme, Recipe

pytestmark = pytest.mark.usefixtures("plugins", "mixing")

COARSE, FINE = (
    QuantizationScheme(weights=QuantizationArgs(format=f"int{bits}", granularity="group", group_size=32))
    for bits in (3, 8)
)
TOO_WIDE = QuantizationScheme(weights=QuantizationArgs(format="int8", granularity="group", group_size=64))


class Mixing(Allocator):
    """Gives the finer scheme to those of the largest loss, one of each pair of choices."""

    candidates = (COARSE, FINE, TOO_WIDE)
    samples = 2

    def choose(self, choices, fixed, outside):
        Mixing.seen = (choices, fixed, outside)
        worst = sorted(range(len(choices)), key=lambda n: -choices[n].losses[0])[: len(choices) // 2]
        return [int(n in worst) for n in range(len(choices))]


@pytest.fixture
def mixing(site, monkeypatch):
    monkeypatch.setattr("gs_core.testing.plugins.Mixing", Mixing, raising=False)
    site("mixing", "1.0", algorithm="mix = gs_core.testing.plugins:Mixing")


def recipe(**fields):
    return Recipe.parse({"scheme": COARSE.model_dump(), "algorithms": ["mix", "round"], "format": "plain"} | fields)


def allocated(toy, tokens, asked):
    model = ToyAdapter().open(toy, "cpu")
    return allocate(asked, allocator_of(asked), model, tokens)


def test_layers_of_one_input_are_chosen_for_together(toy, tokens):
    allocated(toy, tokens, recipe())
    together = [[layer.name for layer in choice.layers] for choice in Mixing.seen[0]]
    assert together[:4] == [
        ["blocks.0.q", "blocks.0.k", "blocks.0.v"],
        ["blocks.0.o"],
        ["blocks.0.gate", "blocks.0.up"],
        ["blocks.0.down"],
    ]
    assert len(together) == 12


def test_a_candidate_that_a_layer_cannot_have_is_not_offered_for_it(toy, tokens):
    allocated(toy, tokens, recipe())
    offered = {choice.layers[0].name: choice.schemes for choice in Mixing.seen[0]}
    assert offered["blocks.0.q"] == (COARSE, FINE, TOO_WIDE)
    assert offered["blocks.0.down"] == (COARSE, FINE)  # 96 features


def test_finer_numbers_lose_less_and_cost_more(toy, tokens):
    allocated(toy, tokens, recipe())
    for choice in Mixing.seen[0]:
        coarse, fine = choice.losses[:2]
        assert 0 < fine < 0.01 * coarse
        weights = sum(n.shape[0] * n.shape[1] for n in choice.layers)
        scales = weights // 32 * 16
        assert choice.bits[:2] == (weights * 3 + scales, weights * 8 + scales)


def test_what_the_user_decided_is_left_alone_and_counted(toy, tokens):
    asked = recipe(ignore=["blocks.0.*"], overrides=[{"match": "blocks.1.*", "scheme": "W8A16"}])
    found = allocated(toy, tokens, asked)
    choices, fixed, _ = Mixing.seen
    assert {layer.block for choice in choices for layer in choice.layers} == {2}
    weights, rows = 3 * 64 * 64 + 3 * 64 * 96, 3 * 64 + 2 * 96 + 64
    assert fixed == weights * 16 + (weights * 8 + rows * 16), "bfloat16, and int8 with a scale for each row"
    assert found.recipe.overrides[0] == asked.overrides[0]


def test_the_measured_block_is_left_as_it_was(toy, tokens):
    model = ToyAdapter().open(toy, "cpu")
    before = model.block(0, (tokens, None)).run(tokens, None)["hidden"]
    allocate(recipe(), allocator_of(recipe()), model, tokens)
    assert np.array_equal(model.block(0, (tokens, None)).run(tokens, None)["hidden"], before)


def test_the_plan_shows_the_choice_and_why(toy, tokens):
    made = api.plan(toy, recipe(), adapter=ToyAdapter(), calibration=tokens, samples=8, seq_len=24)
    schemes = [row.scheme.weights.bits for row in made.rows]
    assert set(schemes) == {3, 8}
    assert all(row.algorithms == ("round",) for row in made.rows)
    assert made.rows[0].reason.startswith("predicted loss ")
    assert "bits a weight, predicted loss" in made.notes[0]


def test_the_same_data_gives_the_same_choice(toy, tokens):
    one, other = (allocated(toy, tokens, recipe()) for _ in range(2))
    assert (one.recipe, one.summary) == (other.recipe, other.summary)


def test_a_run_follows_the_choice(toy, tokens, tmp_path):
    report = api.quantize(
        toy, recipe(), tmp_path / "out", calibration=tokens, samples=8, seq_len=24, adapter=ToyAdapter()
    )
    assert sorted(report.data["schemes"]) == ["w int3 group 32", "w int8 group 32"]
    assert "bits a weight" in report.data["notes"][0]


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"ignore": ["*"]}, "no layer is left to choose a scheme for"),
        ({"overrides": [{"match": "*.q", "scheme": "W8A16", "algorithms": ["mix", "round"]}]}, "for the whole model"),
    ],
)
def test_what_cannot_be_chosen_is_one_sentence(toy, tokens, fields, sentence):
    with pytest.raises(PlanError, match=sentence):
        api.plan(toy, recipe(**fields), adapter=ToyAdapter(), calibration=tokens, samples=8, seq_len=24)


def test_without_data_nothing_can_be_chosen(toy):
    with pytest.raises(PlanError, match="choosing schemes needs calibration data: pass `calibration=`"):
        api.plan(toy, recipe(), adapter=ToyAdapter())
