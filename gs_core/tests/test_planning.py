"""The plan: what will be done to each layer and why, or every reason why it cannot be done, before a weight is read."""

import re

import pytest

from gs_core import Needs, PlanError, api
from gs_core.storage import StoredTensor
from gs_core.testing import ToyAdapter, write_toy
from gs_core.testing.plugins import Levelling, Plain, Rounding
from gs_schemas import SCHEMES, Recipe
from gs_schemas.scheme import Strict

pytestmark = pytest.mark.usefixtures("plugins")

INT4 = {"weights": {"format": "int4", "granularity": "group", "group_size": 32}}
LAYERS = [f"blocks.{block}.{layer}" for block in range(3) for layer in ("q", "k", "v", "o", "gate", "up", "down")]


def recipe(**fields):
    return Recipe.parse({"scheme": INT4, "algorithms": ["round"], "format": "plain"} | fields)


def plan(folder, **fields):
    return api.plan(folder, recipe(**fields), adapter=ToyAdapter())


def problems(folder, **fields):
    with pytest.raises(PlanError) as caught:
        plan(folder, **fields)
    return caught.value.problems


# --- what can be done ----------------------------------------------------------------------------------------


class Amount(Strict):
    """Options for the algorithm ``level``, which has none."""

    alpha: float = 0.5


def test_an_override_may_give_an_algorithm_other_options(toy, monkeypatch):
    monkeypatch.setattr(Levelling, "Options", Amount)
    other = [{"level": {"alpha": 0.8}}, "round"]
    made = plan(toy, algorithms=["level", "round"], overrides=[override("*.down", other)])
    rows = {row.layer.name: row for row in made.rows}
    assert rows["blocks.0.up"].algorithms == ("level", "round")
    assert rows["blocks.0.down"].algorithms == ("level#2", "round")
    assert [made.algorithms[name].options.alpha for name in ("level", "level#2")] == [0.5, 0.8]
    assert sum("level" in key for key in made.versions) == 1
    (problem,) = problems(toy, algorithms=["level", "round"], overrides=[override("*.0.up", other)])
    assert problem == "blocks.0.up: shares its input with blocks.0.gate: give 'level' the same options for both"


def override(match, algorithms):
    return {"match": match, "scheme": INT4, "algorithms": algorithms}


def test_every_layer_has_its_row(toy):
    made = plan(
        toy, ignore=["lm_head", "*.o"], overrides=[{"match": "re:.*up$", "scheme": "W8A16", "algorithms": ["round"]}]
    )
    assert [row.layer.name for row in made.rows] == LAYERS
    rows = {row["layer"]: row for row in made.table()}
    assert list(rows) == [*LAYERS, "lm_head"]
    assert rows["blocks.0.q"] == {
        "layer": "blocks.0.q",
        "shape": [64, 64],
        "scheme": "w int4 group 32",
        "algorithms": ["round"],
        "adapter": "toyadapter",
        "format": "plain",
        "kernel": "reference",
        "why": "recipe",
    }
    assert rows["blocks.1.o"] | {"layer": "", "shape": []} == {
        "layer": "",
        "shape": [],
        "scheme": "float",
        "algorithms": [],
        "adapter": "toyadapter",
        "format": "",
        "kernel": "",
        "why": "ignore '*.o'",
    }
    assert (rows["blocks.2.up"]["scheme"], rows["blocks.2.up"]["why"]) == ("W8A16", "override 're:.*up$'")
    assert rows["lm_head"]["why"] == "outside the decoder blocks"


def test_who_made_what_is_on_record(toy):
    assert dict(plan(toy).versions) == {"algorithm round": "kit-plugins 0.9", "format plain": "kit-plugins 0.9"}


def test_no_weight_is_read(toy, monkeypatch):
    monkeypatch.setattr(StoredTensor, "opened", lambda tensor: pytest.fail(f"{tensor.name} was read"))
    assert plan(toy, algorithms=["level", "round"]).rows


@pytest.mark.parametrize(
    ("fields", "needs"),
    [
        ({}, False),
        ({"algorithms": ["level", "round"]}, True),
        ({"algorithms": ["centre"]}, True),
        ({"scheme": "W8A8"}, False),
        ({"scheme": "W8A8_STATIC"}, True),
        ({"overrides": [{"match": "*.q", "scheme": "W8A8_STATIC"}]}, True),
        ({"overrides": [{"match": "*.q", "scheme": INT4, "algorithms": ["level", "round"]}]}, True),
    ],
)
def test_data_is_needed_by_what_observes_and_by_static_activations(fields, needs, toy):
    assert plan(toy, **fields).needs_data is needs


def test_what_learns_is_refused_where_nothing_can_be_differentiated(toy, monkeypatch):
    monkeypatch.setattr(Rounding, "needs", lambda algorithm, scheme: Needs(data=True, gradient=True))
    with pytest.raises(PlanError, match=r"'round' needs gradients.*toyadapter.*cannot be differentiated; use gptq"):
        plan(toy)


def test_a_recipe_comes_by_name_by_file_or_as_an_object(toy, tmp_path):
    made = recipe(name="mine")
    (tmp_path / "mine.yaml").write_text(made.to_yaml())
    for given in (made, tmp_path / "mine.yaml", str(tmp_path / "mine.yaml")):
        assert api.plan(toy, given, adapter=ToyAdapter()).recipe == made
    assert api.resolve_recipe("w8a8-rtn").scheme == SCHEMES["W8A8"]
    assert api.plan(toy, recipe(format="nonesuch"), format="plain", adapter=ToyAdapter()).recipe == recipe()


# --- what cannot ---------------------------------------------------------------------------------------------

CANNOT = {
    "an unknown algorithm": (
        {"algorithms": ["rounds"]},
        r"no algorithm named 'rounds'; installed: again, centre, impostor, level, picky, round, scattering, turn\. "
        r"Did you mean 'round'\?",
    ),
    "an unknown format": (
        {"format": "plane"},
        r"no format named 'plane'; installed: impostor, jealous, narrow, plain\. Did you mean 'plain'\?",
    ),
    "an unknown option": (
        {"algorithms": [{"round": {"damping": 1}}]},
        r"algorithm 'round': damping: no such field",
    ),
    "a group size that does not divide": (
        {"scheme": {"weights": {"format": "int4", "granularity": "group", "group_size": 64}}},
        r"blocks\.0\.down, blocks\.1\.down, blocks\.2\.down: group_size 64 does not divide in_features 96\. "
        r"Use --group-size 96 \(or 32\), or add an override for these layers to the recipe",
    ),
    "two quantizers": (
        {"algorithms": ["round", "again"]},
        r"blocks\.0\.q, blocks\.0\.k, blocks\.0\.v and 18 more: algorithms \['round', 'again'\]: round and again both "
        r"quantize; keep one of them",
    ),
    "no quantizer": (
        {"algorithms": ["level"]},
        r".* and 18 more: algorithms \['level'\]: none of them quantizes; name one that does last, such as rtn or gptq",
    ),
    "a quantizer that is not the last": (
        {"algorithms": ["round", "level"]},
        r".* and 18 more: algorithms \['round', 'level'\]: 'round' quantizes and must come last",
    ),
    "an override without a quantizer": (
        {"overrides": [{"match": "blocks.1.q", "scheme": INT4, "algorithms": ["level"]}]},
        r"blocks\.1\.q: algorithms \['level'\]: none of them quantizes; .*",
    ),
    "a cache": (
        {"scheme": INT4 | {"kv_cache": {"format": "int8", "granularity": "tensor"}}},
        r"blocks\.0\.attention, .*: scheme\.kv_cache: none of its algorithms treats the KV cache; add 'kv_cache' to "
        r"them, or remove it",
    ),
    "two stages": (
        {"scheme": {"weights": {"format": "int4", "after": {"format": "int8"}}}},
        r".* and 18 more: scheme\.weights\.after: no installed algorithm quantizes in two stages; remove it",
    ),
    "an override that matches nothing": (
        {"overrides": [{"match": "*.q_proj", "scheme": None}]},
        r"override '\*\.q_proj' matches no layer; layers look like 'blocks\.0\.q'",
    ),
    "nothing left": (
        {"ignore": ["*"]},
        r"no layer is left to quantize: every one is ignored or overridden to float",
    ),
    "an algorithm's own objection": (
        {"algorithms": ["picky"]},
        r"blocks\.0\.q, blocks\.1\.q, blocks\.2\.q: algorithm 'picky': dislikes q",
    ),
    "groups that are not neighbours": (
        {"algorithms": ["scattering"]},
        r".* and 18 more: algorithm 'scattering' would group input features that are not neighbours, which this "
        r"checkpoint format cannot hold; .*",
    ),
    "a format's own objection": ({"format": "narrow"}, r".* and 18 more: narrow holds nothing"),
    "a conflict": ({"format": "jealous"}, r"21 layers cannot stand together"),
    "a plugin that is no algorithm": (
        {"algorithms": ["impostor"]},
        r"algorithm 'impostor' \(odd-plugins 2\.0\) must derive from gs_core\.Algorithm",
    ),
    "a plugin that is no format": (
        {"format": "impostor"},
        r"format 'impostor' \(odd-plugins 2\.0\) must derive from gs_core\.CheckpointFormat",
    ),
}

ODD = """
from gs_core.testing.plugins import Levelling, Plain, Rounding

class Impostor: ...

class Picky(Rounding):
    def unsupported(self, layer, scheme):
        return "dislikes q" if layer.name.endswith(".q") else None

class Scattering(Rounding):
    def scatters(self, scheme):
        return True

class Narrow(Plain):
    def unsupported(self, layer, scheme):
        return "narrow holds nothing"

class Jealous(Plain):
    def conflicts(self, layers):
        return [f"{len(layers)} layers cannot stand together"]
"""


@pytest.fixture
def odd(site):
    """Plugins that object."""
    algorithms = {"impostor": "Impostor", "picky": "Picky", "scattering": "Scattering", "again": "Rounding"}
    formats = {"impostor": "Impostor", "narrow": "Narrow", "jealous": "Jealous"}
    kinds = {"algorithm": algorithms, "format": formats}
    lines = {kind: "\n".join(f"{n} = odd:{c}" for n, c in names.items()) for kind, names in kinds.items()}
    site("odd-plugins", "2.0", modules={"odd": ODD}, **lines)


@pytest.mark.parametrize("what", CANNOT)
@pytest.mark.usefixtures("odd")
def test_what_cannot_be_done_is_one_sentence(what, toy):
    fields, sentence = CANNOT[what]
    (problem,) = problems(toy, **fields)
    assert re.fullmatch(sentence, problem), problem


@pytest.mark.usefixtures("odd")
def test_every_problem_is_told_at_once(toy):
    found = problems(
        toy,
        algorithms=["level"],
        scheme={"weights": {"format": "int4", "granularity": "group", "group_size": 64}},
        overrides=[{"match": "*.q_proj", "scheme": None}],
    )
    assert len(found) == 3
    assert len(problems(toy, algorithms=["rounds"], format="plane")) == 2


def test_numbers_that_nothing_can_compute(toy):
    found = problems(toy, scheme={"weights": {"format": "fp8_e4m3"}})
    assert found[0].endswith(" and 18 more: scheme.weights.format: numerics for 'fp8_e4m3' are not installed")
    assert found[1] == "no kernel for w fp8_e4m3 channel on cpu:\n  reference: knows integer weights, got fp8_e4m3"


def test_an_ignore_that_matches_nothing_is_a_warning(toy):
    made = plan(toy, ignore=["lm_head", "*.q_proj", "*.q"])
    assert made.warnings == ("ignore '*.q_proj' matches nothing in this model",)


def test_an_algorithm_that_nothing_is_given_to_is_named(toy):
    made = plan(toy, algorithms=["level", "round"], overrides=[override("*", ["round"])])
    assert made.warnings == ("algorithm 'level' has nothing to do: nothing that is quantized is given to it",)


def test_a_format_may_fit_a_scheme_and_says_why(toy, monkeypatch):
    wider = SCHEMES["W8A16"]
    fit = lambda self, layer, scheme: (wider, "engines take int8 there") if layer.name.endswith(".q") else None  # noqa: E731
    monkeypatch.setattr(Plain, "fit", fit)
    rows = {row.layer.name: row for row in plan(toy).rows}
    assert (rows["blocks.0.q"].scheme, rows["blocks.0.q"].reason) == (wider, "recipe; engines take int8 there")
    assert rows["blocks.0.k"].reason == "recipe"


# --- models and recipes that cannot be had -------------------------------------------------------------------


def test_a_model_that_is_not_there(tmp_path):
    with pytest.raises(PlanError, match="absent: no such model folder"):
        plan(tmp_path / "absent")


def test_a_folder_no_adapter_takes(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "nonesuch"}')
    with pytest.raises(PlanError, match=r"no installed adapter takes .*: none is installed"):
        api.plan(tmp_path, recipe())


def test_an_adapter_by_name_and_by_refusal(site, tmp_path):
    site("toy-adapter", adapter="toy = gs_core.testing.toy:ToyAdapter")
    folder = write_toy(tmp_path / "small", hidden=32, intermediate=32)
    assert api.plan(folder, recipe(), adapter="toy").adapter == "toy"
    with pytest.raises(PlanError) as caught:
        api.plan(object(), recipe())
    assert str(caught.value) == "no installed adapter takes object:\n  toy: handles no live objects"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("w8a8-smoothqant", r"no recipe named 'w8a8-smoothqant'; the nearest: w8a8-smoothquant, "),
        ("absent.yaml", r"cannot read recipe absent\.yaml: .*No such file"),
    ],
)
def test_a_recipe_that_is_not_there(given, message, toy):
    with pytest.raises(PlanError, match=message):
        api.plan(toy, given, adapter=ToyAdapter())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scheme: W4A16\nalgorithms: [rtn]\ncolour: red\n", "colour: no such field"),
        ("scheme: [", "mine.yaml: while parsing"),
        ("- rtn\n", "expected a mapping of fields, got list"),
    ],
)
def test_a_recipe_file_that_does_not_validate(text, message, toy, tmp_path):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(PlanError, match=message):
        api.plan(toy, tmp_path / "mine.yaml", adapter=ToyAdapter())
