"""What is said at the end of a run, from the report alone."""

import copy
from pathlib import Path

import pytest

from gs_core.cli.summary import print_summary
from gs_core.report import Report


def layer(name: str, error: float, of: str = "output") -> dict:
    return {
        "layer": name,
        "shape": [64, 64],
        "scheme": "W4A16",
        "algorithms": ["gptq"],
        "error": error,
        "error_of": of,
        "tokens": 1000,
    }


DATA = {
    "recipe": {"name": "w4a16-gptq", "algorithms": [{"name": "gptq"}]},
    "model": "models/big one",
    "bytes_before": 6 * 2**30,
    "bytes_after": 2 * 2**30,
    "schemes": {"W4A16": 7, "W8A16": 1},
    "kept_in_float": [
        {"layer": "lm_head", "why": "outside the decoder blocks"},
        {"layer": "layers.0.o", "why": "ignore '*.o'"},
        {"layer": "layers.1.o", "why": "ignore '*.o'"},
    ],
    "layers": [layer(f"layers.{i}.q", 0.001 * i) for i in range(8)],
    "engines": [
        {"name": "transformers", "opens": True, "note": ""},
        {"name": "vLLM", "opens": False, "note": "no kernel"},
    ],
    "notes": [],
    "run": {"seconds": 100.0, "seconds_of_this_process": 134.0, "peak_memory_bytes": 3 * 2**30},
}


@pytest.fixture
def summary(capsys):
    """The lines of a summary of ``DATA`` with some entries replaced."""

    def printed(**changed) -> list[str]:
        print_summary(Report(Path("out"), copy.deepcopy(DATA) | changed))
        return capsys.readouterr().out.splitlines()

    return printed


def test_the_facts(summary):
    assert summary()[:11] == [
        "models/big one → out",
        "  recipe  w4a16-gptq",
        "  size    6 GiB → 2 GiB, 3.00 times smaller",
        "  layers  7 layers as W4A16, 1 layer as W8A16",
        "  opens   in transformers",
        "          not in vLLM: no kernel",
        "  float   lm_head: outside the decoder blocks",
        "          layers.{0,1}.o: ignore '*.o'",
        "  time    2 min 14 s",
        "  memory  3 GiB at its peak",
        "",
    ]


def test_the_five_worst_layers_worst_first(summary):
    lines = summary()
    start = next(i for i, line in enumerate(lines) if "worst layers" in line)
    assert lines[start].split() == ["worst", "layers", "scheme", "algorithms", "output", "error"]
    rows = [line.split() for line in lines[start + 2 : start + 7]]
    assert [(row[0], row[-2]) for row in rows] == [
        ("layers.7.q", "0.700"),
        ("layers.6.q", "0.600"),
        ("layers.5.q", "0.500"),
        ("layers.4.q", "0.400"),
        ("layers.3.q", "0.300"),
    ]
    assert lines[start + 7] == ""


def test_errors_of_weights_are_told_from_errors_of_outputs(summary):
    lines = summary(layers=[layer("a", 0.5), layer("b", 0.25, "weight")])
    assert any(line.split() == ["a", "W4A16", "gptq", "50.0", "%", "of", "output"] for line in lines)
    assert any(line.split() == ["b", "W4A16", "gptq", "25.0", "%", "of", "weight"] for line in lines)


def test_the_next_command_can_be_pasted(summary):
    assert summary()[-1] == "  gsq eval out --against 'models/big one' --text FILE"


def test_a_resumed_run_tells_its_own_time_from_the_whole(summary):
    run = DATA["run"] | {"seconds": 4000.0}
    assert "  time    2 min 14 s this time, 1 h 06 min for all blocks" in summary(run=run)


def test_a_recipe_without_a_name_is_known_by_its_algorithms(summary):
    recipe = {"algorithms": [{"name": "smoothquant"}, {"name": "rtn"}]}
    assert "  recipe  smoothquant, rtn" in summary(recipe=recipe)


class TestNotes:
    def notes(self, summary, *notes: str) -> list[str]:
        lines = summary(notes=list(notes))
        first = next(i for i, line in enumerate(lines) if line.startswith("  memory")) + 1
        return [line[10:] for line in lines[first : lines.index("", first)]]

    def test_none_when_there_are_none(self, summary):
        assert self.notes(summary) == []

    def test_the_same_note_on_many_layers_is_one(self, summary):
        unseen = [f"layers.{i}.experts.{e}.up: no token reached it" for i in range(4) for e in range(8)]
        assert self.notes(summary, *unseen, "ignore 'x' matches nothing") == [
            "layers.{0..3}.experts.{0..7}.up: no token reached it",
            "ignore 'x' matches nothing",
        ]

    def test_notes_that_differ_in_a_number_are_shown_by_the_first(self, summary):
        notes = [f"layers.{i}: dropped, the block changes by {i}.5e-03" for i in range(4)]
        assert self.notes(summary, *notes) == ["layers.0: dropped, the block changes by 0.5e-03 (and 3 notes like it)"]

    def test_many_different_ones_are_left_to_the_report(self, summary):
        notes = [f"layer {word}: odd" for word in "abcdefghijk"]
        assert self.notes(summary, *notes) == [*notes[:8], "and 3 more, in gsq_report.json"]
