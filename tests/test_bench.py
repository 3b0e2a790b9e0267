"""The benchmark's tables: what they name exists, and what is measured again replaces what was there."""

import importlib
import sys
from pathlib import Path

import pytest

from gs_core import plan
from gs_schemas import RECIPES, Recipe

sys.path.insert(0, str(Path(__file__).parent / "bench"))
import accuracy
from measuring import lines_of, table
from peers import OURS, PEERS
from rows import ROWS, SCHEMES_AND_ALGORITHMS, SPEED
from run import sections
from tested_models import MODELS

NAMED = [
    *(
        (tool, name)
        for row in ROWS.values()
        for tool, names in row.items()
        if not isinstance(names, str)
        for name in names
    ),
    *((tool, name) for name, tools in SPEED.items() for tool in tools),
]


@pytest.mark.parametrize(("tool", "name"), [(tool, name) for tool, name in NAMED if tool != OURS])
def test_the_script_of_a_tool_knows_the_recipe(tool, name):
    assert name in importlib.import_module(f"quantize_{PEERS[tool].lane}").RECIPES


@pytest.mark.parametrize("name", sorted({name for tool, name in NAMED if tool == OURS}))
def test_our_recipe_can_be_carried_out(data, name):
    """A plan raises what stands in the way."""
    asked = SCHEMES_AND_ALGORITHMS.get(name)
    recipe = Recipe.parse(asked) if asked else RECIPES[name]
    assert plan(data.model("tiny-llama"), recipe, calibration=data.calibration).recipe == recipe


def test_a_new_measurement_replaces_only_the_cells_of_that_model():
    old = dict.fromkeys(accuracy.HEADER, "old") | {"row": "KV int8", "by": OURS, "recipe": "kv8"}
    other = old | {"recipe": "gone"}
    known = accuracy._known([list(old.values()), list(other.values()), ["a", "page", "of", "other", "columns"]])
    assert list(known) == [("KV int8", OURS, "kv8")], "recipes that are no longer measured are dropped"
    new = known["KV int8", OURS, "kv8"] | {"SmolLM2-135M": "1.23"}
    page = accuracy._section({("KV int8", OURS, "kv8"): new})
    (line,) = lines_of(page)
    cells = dict(zip(accuracy.HEADER, line, strict=True))
    assert (cells["SmolLM2-135M"], cells["tiny-llama"]) == ("1.23", "old")


def test_what_is_kept_stands_before_what_it_costs():
    assert list(accuracy.HEADER[3 : 3 + len(MODELS)]) == list(MODELS)


def test_a_page_is_read_as_it_was_written():
    lines = [["float", "", "", "14.6"], ["W4A16", "ours", "w4a16-gptq", "14.7"]]
    page = (
        f"# Benchmarks\n\n## Accuracy\n\nsaid\n\n{table(('row', 'by', 'recipe', 'found'), lines)}\n## Speed\n\nfast\n"
    )
    assert lines_of(sections(page)["accuracy"]) == lines
    assert sections(page)["speed"] == "fast"
    assert sections("")["memory"] == ""
