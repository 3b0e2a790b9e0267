"""Hostile YAML and JSON: every document is read or refused quickly."""

import time

import pytest

from gs_schemas import Recipe, SchemaError
from gs_schemas.loading import MAX_DEPTH, load_yaml
from gs_schemas.recipe import matches

BOMB = "a0: &a0 [x, x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30))
MERGES = "a0: &a0 {k: v}\n" + "".join(f"a{n}: &a{n}\n  <<: [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "more than 100000 nodes, aliases included"),
        (MERGES, "more than 100000 nodes, aliases included"),
        ("a: &a [*a]", "contains itself"),
        ("[" * 10_000, "nested deeper than 64 levels"),
        ("[" * 100 + "]" * 100, "nested deeper than 64 levels"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "nested deeper than 64 levels"),
        ("a: " + "7" * 5000, "cannot be read"),
        ('{"a": ' + "7" * 4000 + "}", "integer of more than 256 bits"),
        ("a: 0x" + "f" * 100_000, "integer of more than 256 bits"),
        ("a: 2024-99-99", "cannot be read"),
        ("a: !!bool x", "cannot be read"),
        ("a: !!timestamp x", "cannot be read"),
        ("a: !!int ''", "cannot be read"),
        ('{"a": "\\ud800"}', "cannot be read"),
        ("x" * (2**20 + 1), "more than 1048576 characters"),
    ],
    ids=range(15),
)
def test_a_document_that_exceeds_a_limit_is_refused_quickly(text, message):
    started = time.process_time()
    with pytest.raises(SchemaError, match=message):
        load_yaml(text, "recipe")
    assert time.process_time() - started < 5


def test_ordinary_aliases_and_merges_are_read():
    assert load_yaml("a: &a {x: 1}\nb: *a\nc: {<<: *a, y: 2}", "recipe") == {
        "a": {"x": 1}, "b": {"x": 1}, "c": {"x": 1, "y": 2}
    }  # fmt: skip
    assert load_yaml("[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1), "recipe")


NAME = "model.layers.10.self_attn.query_key_value_projection_with_a_long_name"


@pytest.mark.parametrize("pattern", [r"re:(\w+\.?)+!", r"re:(\w+\.?)+[!?]", r"re:(a|a|\w|\.)*(\w|\.)*(\w|\.)+[!?]$"])
def test_nested_repetition_is_matched_quickly(pattern):
    started = time.process_time()
    assert not matches(pattern, NAME)
    assert time.process_time() - started < 5


def test_a_slow_regular_expression_is_refused():
    started = time.process_time()
    with pytest.raises(SchemaError, match="takes more than 1 s on"):
        matches("re:" + "(.*)" * 10 + r"(\d\d\d|\1x\2)$", NAME)
    assert time.process_time() - started < 5


def test_regular_expressions_keep_the_syntax_of_re():
    assert matches(r"re:^(?!.*lm_head).*_proj$", "model.layers.0.mlp.up_proj")
    assert not matches(r"re:^(?!.*lm_head).*_proj$", "lm_head_proj")
    assert matches(r"re:(\w)\1", "aab")


@pytest.mark.parametrize("pattern", ["re:(", "re:" + "(" * 5000 + ")" * 5000, "x" * 10_001])
def test_a_pattern_that_cannot_be_compiled_is_refused(pattern):
    with pytest.raises(SchemaError, match=r"not a regular expression|more than 10000"):
        Recipe.parse({"scheme": "W4A16", "algorithms": ["rtn"], "ignore": [pattern]})
