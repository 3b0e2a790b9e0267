"""Recipes: read and written without loss, matched to layers in order."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gs_schemas import NUMBER_FORMATS, SCHEMES, QuantizationArgs, QuantizationScheme, Recipe, SchemaError, matches

# --- recipes of every kind -----------------------------------------------------------------------------------

# Any text but for one character: YAML's library writes U+0085 as a line break.
text = st.text(st.characters(codec="utf-8", exclude_characters="\x85"), min_size=1, max_size=12)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=5,
)


@st.composite
def args(draw, granularities, dynamic):
    number = draw(st.sampled_from(sorted(NUMBER_FORMATS.values(), key=lambda row: row.name)))
    granularity = "group" if number.kind == "shared_exponent" else draw(st.sampled_from(granularities))
    narrow = draw(st.booleans())
    size = st.integers(1, 512)
    return QuantizationArgs(
        format=number.name,
        granularity=granularity,
        group_size=(number.block_size or draw(size)) if granularity == "group" else None,
        block_size=draw(st.tuples(size, size)) if granularity == "block" else None,
        symmetric=number.kind != "uint" and (not number.is_integer or draw(st.booleans())),
        dynamic=dynamic if granularity != "token" else True,
        observer=draw(st.sampled_from(["minmax", "mse"])),
        scale_format="fp8_e4m3"
        if narrow
        else draw(st.sampled_from(["model", "float32", "float16", "bfloat16", "e8m0"])),
        global_scale=narrow and draw(st.booleans()),
        zero_point=draw(st.sampled_from(["int", "float"])),
        after=draw(st.none() | args(granularities, dynamic)) if draw(st.integers(0, 3)) == 0 else None,
    )


schemes = st.builds(
    QuantizationScheme,
    name=st.none() | text,
    weights=st.none() | args(["tensor", "channel", "group", "block"], dynamic=False),
    inputs=st.none() | args(["tensor", "token", "group"], dynamic=True),
    kv_cache=st.none()
    | args(["tensor", "channel", "head"], dynamic=False).filter(lambda a: a.granularity != "group")
    | args(["token", "head", "group"], dynamic=True),
)


@st.composite
def recipes(draw):
    options = draw(st.dictionaries(text, st.dictionaries(text, plain, max_size=2), min_size=1, max_size=3))
    algorithms = [{"name": name, "options": given} for name, given in options.items()]
    overrides = st.fixed_dictionaries(
        {"match": text, "scheme": st.none() | schemes},
        optional={"algorithms": st.none() | st.lists(st.sampled_from(algorithms), max_size=2)},
    )
    fields = {
        "name": draw(st.none() | text),
        "scheme": draw(schemes | st.sampled_from(sorted(SCHEMES))),
        "algorithms": algorithms,
        "ignore": draw(st.lists(text, max_size=3)),
        "overrides": draw(st.lists(overrides, max_size=2)),
        "calibration": {"data": draw(st.none() | text), "samples": draw(st.integers(1, 9)), "seq_len": 2},
        "format": draw(text),
    }
    return Recipe.parse({name: value for name, value in fields.items() if value is not None})


@given(recipes())
@settings(max_examples=100, deadline=None, database=None, derandomize=True)
def test_a_recipe_survives_yaml_and_json(recipe):
    assert Recipe.from_text(recipe.to_yaml()) == recipe
    assert Recipe.from_text(recipe.to_json()) == recipe
    assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe


def test_a_recipe_comes_from_a_file(tmp_path):
    recipe = Recipe.parse({"scheme": "W4A16", "algorithms": ["rtn"], "name": "grün"})
    for file, written in {"a.yaml": recipe.to_yaml(), "a.yml": recipe.to_yaml(), "a.json": recipe.to_json()}.items():
        (tmp_path / file).write_text(written, encoding="utf-8")
        assert Recipe.from_file(tmp_path / file) == recipe


def test_yaml_leaves_out_what_is_the_default():
    recipe = Recipe.parse({"scheme": {"weights": {"format": "int8"}}, "algorithms": ["rtn"]})
    assert recipe.to_yaml() == "scheme:\n  weights:\n    format: int8\nalgorithms:\n- name: rtn\n"


def test_algorithms_have_short_forms():
    forms = ["gptq", {"gptq": None}, {"gptq": {}}, {"name": "gptq"}, {"name": "gptq", "options": {}}]
    recipes = [Recipe.parse({"scheme": "W4A16", "algorithms": [form]}) for form in forms]
    assert all(recipe == recipes[0] for recipe in recipes)
    long = Recipe.parse({"scheme": "W4A16", "algorithms": [{"gptq": {"damping": 0.1}}]})
    assert (long.algorithms[0].name, long.algorithms[0].options) == ("gptq", {"damping": 0.1})


def test_schemes_come_by_name_everywhere():
    given = {"scheme": "W8A8", "algorithms": ["rtn"], "overrides": [{"match": "*", "scheme": "W4A16"}]}
    recipe = Recipe.parse(given)
    assert recipe.scheme == SCHEMES["W8A8"]
    assert recipe.overrides[0].scheme == SCHEMES["W4A16"]


def test_the_head_stays_in_floating_point_unless_told_otherwise():
    assert Recipe.parse({"scheme": "W4A16", "algorithms": ["rtn"]}).ignore == ["lm_head"]
    assert Recipe.parse({"scheme": "W4A16", "algorithms": ["rtn"], "ignore": []}).ignore == []


# --- patterns ------------------------------------------------------------------------------------------------

NAME = "model.layers.1.mlp.down_proj"


@pytest.mark.parametrize(
    ("pattern", "fits"),
    [
        (NAME, True),
        ("*down_proj", True),
        ("*.layers.1.*", True),
        ("model.layers.?.mlp.down_proj", True),
        ("model.layers.[12].*", True),
        ("down_proj", False),
        ("model.layers.1", False),
        ("*.Down_Proj", False),
        ("re:.*down_proj", True),
        (r"re:model\.layers\.[0-9]+\.", True),
        ("re:.*down_proj$", True),
        ("re:down_proj", False),
        (r"re:.*\.mlp$", False),
    ],
)
def test_a_glob_covers_the_whole_name_and_an_expression_starts_at_its_start(pattern, fits):
    assert matches(pattern, NAME) is fits


def rules(**fields):
    return Recipe.parse({"scheme": "W8A8", "algorithms": ["smoothquant", "rtn"]} | fields)


def rule(recipe, layer):
    scheme, algorithms, reason = recipe.rule_for(layer)
    return scheme and scheme.describe(), [algorithm.name for algorithm in algorithms], reason


def test_the_first_override_that_matches_decides():
    recipe = rules(
        overrides=[
            {"match": "*.down", "scheme": "W4A16", "algorithms": ["gptq"]},
            {"match": "re:.*down", "scheme": "W8A16"},
            {"match": "*.up", "scheme": None},
            {"match": "*.up", "scheme": "W4A16"},
        ]
    )
    assert rule(recipe, "0.down") == ("W4A16", ["gptq"], "override '*.down'")
    assert rule(recipe, "0.down.x") == ("W8A16", ["smoothquant", "rtn"], "override 're:.*down'")
    assert rule(recipe, "0.up") == (None, [], "override '*.up'")
    assert rule(recipe, "0.gate") == ("W8A8", ["smoothquant", "rtn"], "recipe")


def test_ignore_wins_over_every_override():
    recipe = rules(ignore=["lm_head", "*.down"], overrides=[{"match": "*", "scheme": "W4A16"}])
    assert rule(recipe, "0.down") == (None, [], "ignore '*.down'")
    assert rule(recipe, "0.up") == ("W4A16", ["smoothquant", "rtn"], "override '*'")


# --- what is refused -----------------------------------------------------------------------------------------


def problems(**fields):
    with pytest.raises(SchemaError) as caught:
        rules(**fields)
    return caught.value.problems


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"algorythms": []}, "algorythms: no such field; fields: name, scheme, algorithms, ignore, overrides, "),
        ({"algorythms": []}, "Did you mean 'algorithms'?"),
        (
            {"calibration": {"sample": 3}},
            "calibration.sample: no such field; fields: data, samples, seq_len, dtype. Did you mean 'samples'?",
        ),
        (
            {"overrides": [{"match": "*", "schema": None, "scheme": None}]},
            "overrides.0.schema: no such field; fields: match, scheme, algorithms. Did you mean 'scheme'?",
        ),
        ({"overrides": [{"scheme": None}]}, "overrides.0.match: is required"),
        ({"scheme": "W4A61"}, "scheme: no scheme named 'W4A61'; the nearest: W4A16, "),
        ({"scheme": "w4a16"}, "no scheme named 'w4a16'; the nearest: W4A16, "),
        (
            {"scheme": {"weights": {"format": "int44"}}},
            "scheme.weights.format: no number format named 'int44'; there are: ",
        ),
        ({"scheme": {"weights": {"format": "int44"}}}, "Did you mean 'int4'?"),
        (
            {"scheme": {"weights": {"format": "int4", "granularity": "grup"}}},
            "scheme.weights.granularity: got 'grup', allowed: tensor, channel, group, block, token, head. "
            "Did you mean 'group'?",
        ),
        (
            {"scheme": {"weights": {"format": "int4", "observer": "max"}}},
            "scheme.weights.observer: got 'max', allowed: minmax, mse, percentile, divergence, average.",
        ),
        ({"scheme": {"weights": {"format": "int4", "group_siez": 3}}}, "scheme.weights.group_siez: no such field; "),
        ({"scheme": {"weights": {"format": "int4", "group_siez": 3}}}, "Did you mean 'group_size'?"),
        ({"scheme": {"weights": {"format": "uint4"}}}, "scheme.weights: 'uint4' is unsigned: symmetric must be false"),
        ({"algorithms": []}, "algorithms: got []. List should have at least 1 item"),
        ({"algorithms": ["rtn", "rtn"]}, "algorithms: 'rtn' stands in the list twice; give it once, with its options"),
        ({"algorithms": [3]}, "algorithms.0: "),
        ({"ignore": ["re:("]}, "ignore.0: 're:(' is not a regular expression: "),
        ({"ignore": [""]}, "ignore.0: got ''. String should have at least 1 character"),
        ({"calibration": {"samples": 0}}, "calibration.samples: got 0. Input should be greater than 0"),
        ({"calibration": {"samples": "many"}}, "calibration.samples: got 'many'. Input should be a valid integer"),
    ],
)
def test_a_mistake_names_the_field_what_was_given_and_what_is_allowed(fields, message):
    (problem,) = problems(**fields)
    assert message in problem


def test_an_algorithm_with_other_options_is_another_instance_of_it():
    given = [["rtn"], [{"gptq": {"damping": 0.1}}], ["awq", {"gptq": {"damping": 0.2}}], [{"gptq": {"damping": 0.1}}]]
    first, *others = given
    overrides = [{"match": str(n), "scheme": "W4A16", "algorithms": other} for n, other in enumerate(others)]
    found = Recipe.parse({"scheme": "W4A16", "algorithms": first, "overrides": overrides}).instances()
    assert list(found) == ["rtn", "gptq", "awq", "gptq#2"]
    assert [found[name].options for name in ("gptq", "gptq#2")] == [{"damping": 0.1}, {"damping": 0.2}]


def test_every_mistake_is_told_at_once():
    found = problems(colour="red", calibration={"samples": 0}, format=3)
    assert [problem.partition(":")[0] for problem in found] == ["calibration.samples", "format", "colour"]
    assert Recipe.model_fields.keys() >= {"calibration", "format"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "mine.yaml: expected a mapping of fields, got NoneType"),
        ("[1, 2]", "mine.yaml: expected a mapping of fields, got list"),
        ("{}", "mine.yaml: scheme: is required; algorithms: is required"),
        ("scheme: [", "mine.yaml: while parsing a flow node expected the node content"),
        (
            "scheme: !!python/object/apply:os.system ['true']",
            "mine.yaml: could not determine a constructor for the tag",
        ),
        ("a: b: c", "line 1, column 5"),
    ],
)
def test_text_that_is_no_recipe_says_where(text, message):
    with pytest.raises(SchemaError) as caught:
        Recipe.from_text(text, "mine.yaml")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_json_is_read_as_json():
    """YAML's parser would take this number for text."""
    options = {"damping": 1e-05, "pattern": "re:a\\d", "separator": "\u2028"}
    given = {"scheme": "W4A16", "algorithms": [{"gptq": options}]}
    for text in (json.dumps(given), json.dumps(given, ensure_ascii=False)):
        assert Recipe.from_text(text).algorithms[0].options == options
