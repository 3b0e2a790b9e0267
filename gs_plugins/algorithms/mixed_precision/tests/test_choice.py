"""The choice is the best there is; a goal that cannot be kept says what can."""

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gs_core import Choice, LayerInfo, PlanError
from gs_mixed_precision import MixedPrecision, Options, least_loss
from gs_schemas import SCHEMES, SchemaError, validate

tables = st.lists(
    st.lists(st.tuples(st.floats(1e-6, 1.0), st.integers(1, 40)), min_size=1, max_size=3), min_size=1, max_size=5
)


@settings(deadline=None, max_examples=100)
@given(tables, st.integers(0, 150))
def test_no_other_choice_within_the_budget_has_a_smaller_loss(table, budget):
    losses, bits = [[loss for loss, _ in row] for row in table], [[cost for _, cost in row] for row in table]
    every = list(product(*(range(len(row)) for row in table)))
    within = [c for c in every if sum(bits[n][k] for n, k in enumerate(c)) <= budget]
    found = least_loss(losses, bits, budget)
    if not within:
        assert found is None
        return
    best = min(sum(losses[n][k] for n, k in enumerate(c)) for c in within)
    assert found is not None
    assert sum(bits[n][k] for n, k in enumerate(found)) <= budget
    assert sum(losses[n][k] for n, k in enumerate(found)) == pytest.approx(best, rel=1e-5)


def choice(*losses):
    """One layer of a thousand weights, with candidates of 4 and 8 bits."""
    layer = LayerInfo("blocks.0.q", 0, (10, 100), "blocks.0.q.input", "bfloat16")
    return Choice((layer,), (SCHEMES["W4A16"], SCHEMES["W8A16"]), losses, (4000, 8000))


def chooser(**goal):
    return MixedPrecision(Options(candidates=["W4A16", "W8A16"], **goal))


def test_bits_go_where_they_gain_most():
    choices = [choice(0.5, 0.1), choice(0.9, 0.1), choice(0.2, 0.1)]
    assert chooser(bits=4).choose(choices, 0, 0) == [0, 0, 0]
    assert chooser(bits=5.4).choose(choices, 0, 0) == [0, 1, 0]
    assert chooser(bits=6.7).choose(choices, 0, 0) == [1, 1, 0]
    assert chooser(bits=8).choose(choices, 0, 0) == [1, 1, 1]


def test_a_size_counts_what_is_no_layer_too():
    choices = [choice(0.5, 0.1), choice(0.9, 0.1)]
    assert chooser(size=2000e-9).choose(choices, 0, 0) == [1, 1]
    assert chooser(size=2000e-9).choose(choices, 2000, 2000) == [0, 1]


@pytest.mark.parametrize(
    ("goal", "sentence"), [({"bits": 3.5}, "bits: 3.5 cannot be kept; the candidates need 4"), ({"size": 1e-9}, "need")]
)
def test_a_goal_that_cannot_be_kept_says_what_can(goal, sentence):
    with pytest.raises(PlanError, match=sentence):
        chooser(**goal).choose([choice(0.5, 0.1)], 0, 0)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, "give one goal"),
        ({"bits": 4, "size": 1}, "give one goal"),
        ({"bits": 4, "candidates": ["W4A16"]}, "at least 2"),
        ({"bits": 4, "candidates": ["W4A16", "W5A16"]}, "no scheme named 'W5A16'"),
        ({"bits": 4, "candidates": ["W4A16", {"inputs": {"format": "int8", "granularity": "tensor"}}]}, "weights"),
    ],
)
def test_a_mistake_in_the_options_is_one_sentence(options, sentence):
    with pytest.raises(SchemaError) as caught:
        validate(Options, {"candidates": ["W4A16", "W8A16"]} | options, "mixed_precision")
    assert any(sentence in problem for problem in caught.value.problems), caught.value.problems
