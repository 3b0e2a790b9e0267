"""The command, on the toy and on nothing at all: what is printed where, and the exit codes."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import gs_schemas
from gs_core import hookimpl
from gs_core.cli import app
from gs_core.testing import write_toy
from gs_core.testing.plugins import Rounding

RECIPE = """
scheme: W8A8
algorithms: [round]
format: plain
"""


@pytest.fixture
def gsq():
    """Run the command; an exception that it lets through fails the test with its traceback."""

    def run(*arguments: object):
        return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)

    return run


@pytest.fixture
def toy(tmp_path, monkeypatch, plugins, site):
    """A folder with the toy model, a recipe for it and a text, and an adapter that is asked before any other."""
    site("kit-adapter", adapter="a-toy = gs_core.testing.toy:ToyAdapter")
    write_toy(tmp_path / "toy", blocks=3)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog. " * 200)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def errors(result) -> list[str]:
    """The lines on stderr that say what went wrong."""
    return [line for line in result.stderr.splitlines() if line.startswith("error: ")]


class TestRecipes:
    def test_the_presets(self, gsq):
        result = gsq("recipes")
        assert result.exit_code == 0
        rows = {line.split()[0]: line for line in result.stdout.splitlines()[2:]}
        assert list(rows) == list(gs_schemas.RECIPES)
        assert rows["w8a8-smoothquant"].split()[1:4] == ["W8A8", "smoothquant,", "rtn"]

    def test_one_of_them_as_a_file_to_change(self, gsq):
        result = gsq("recipes", "w8a8-smoothquant")
        assert gs_schemas.Recipe.from_text(result.stdout) == gs_schemas.recipe("w8a8-smoothquant")

    def test_an_unknown_one(self, gsq):
        result = gsq("recipes", "w8a8-smoothquand")
        assert (result.exit_code, result.stdout) == (2, "")
        (line,) = errors(result)
        assert line.startswith("error: no recipe named 'w8a8-smoothquand'; the nearest: w8a8-smoothquant, ")
        assert line.endswith("; `gsq recipes` lists all.")


def test_the_schema_is_json(gsq):
    assert json.loads(gsq("schema").stdout)["title"] == "Recipe"


class TestPlugins:
    def test_every_kind_with_its_distribution(self, gsq, plugins):
        rows = json.loads(gsq("plugins", "--json").stdout)
        assert {"algorithm", "format", "kernel"} <= {row["kind"] for row in rows}
        assert {
            "kind": "algorithm",
            "name": "round",
            "distribution": "kit-plugins",
            "version": "0.9",
            "status": "ok",
        } in rows

    def test_a_broken_one_and_a_name_claimed_twice_are_shown_beside_the_others(self, gsq, plugins, site):
        site("acme", "2.0", algorithm="acme-halve = no_such_module:Halve")
        site("rival", "1.0", format="plain = rival:Plain")
        result = gsq("plugins")
        assert result.exit_code == 0
        lines = {" ".join(line.split()[:4]): line for line in result.stdout.splitlines()}
        assert "broken: " in lines["algorithm acme-halve acme 2.0"]
        assert "No module named 'no_such_module'" in lines["algorithm acme-halve acme 2.0"]
        (conflict,) = (line for line in result.stdout.splitlines() if line.split()[:2] == ["format", "plain"])
        assert "conflict: format 'plain' is claimed by kit-plugins 0.9 and rival 1.0" in conflict
        assert lines["algorithm round kit-plugins 0.9"].endswith("ok")


class TestPlan:
    def test_a_screen_however_many_blocks(self, gsq, toy):
        result = gsq("plan", "toy", "recipe.yaml")
        assert result.exit_code == 0
        rows = [line.split() for line in result.stdout.splitlines()]
        assert ["layer", "scheme", "algorithms", "adapter", "format", "kernel", "why"] in rows
        assert ["blocks.{0..2}.q", "W8A8", "round", "a-toy", "plain", "reference", "recipe"] in rows
        assert result.stdout.count("blocks.") == 7
        assert rows[-1][:5] == ["3", "blocks,", "21", "layers", "quantized"]
        assert result.stdout.endswith("needs no calibration data\n")

    def test_a_layer_that_is_treated_differently_has_a_row_of_its_own(self, gsq, toy):
        override = 'overrides=[{match: "blocks.1.down", scheme: W8A16}]'
        lines = gsq("plan", "toy", "recipe.yaml", "--set", override).stdout.splitlines()
        assert any(line.split()[:2] == ["blocks.{0,2}.down", "W8A8"] for line in lines)
        (row,) = (line for line in lines if line.startswith("blocks.1.down "))
        assert row.split()[1] == "W8A16"
        assert row.endswith("override 'blocks.1.down'")

    def test_with_the_adapter_that_is_asked_for(self, gsq, toy, site):
        site("another", adapter="z-toy = gs_core.testing.toy:ToyAdapter")
        (row,) = (r for r in gsq("plan", "toy", "recipe.yaml", "--adapter", "z-toy").stdout.splitlines() if ".q " in r)
        assert row.split()[3] == "z-toy"
        (error,) = errors(gsq("plan", "toy", "recipe.yaml", "--adapter", "toys"))
        assert error == "error: no adapter named 'toys'; installed: a-toy, z-toy. Did you mean 'z-toy'?"
        (toy / "empty").mkdir()
        result = gsq("plan", "empty", "recipe.yaml", "--adapter", "z-toy")
        assert result.exit_code == 2
        assert "error: the adapter asked for does not take empty:" in result.stderr

    def test_json_has_every_row(self, gsq, toy):
        answer = json.loads(gsq("plan", "toy", "recipe.yaml", "--json").stdout)
        assert len(answer["layers"]) == 3 * 7 + 1
        assert answer["totals"]["layers_quantized"] == 21
        assert answer["layers"][-1]["why"] == "outside the decoder blocks"

    def test_the_estimate_is_the_size_that_comes_out(self, gsq, toy):
        totals = json.loads(gsq("plan", "toy", "recipe.yaml", "--json").stdout)["totals"]
        gsq("quantize", "toy", "recipe.yaml", "-o", "out")
        report = json.loads((toy / "out/gsq_report.json").read_text())
        assert totals["bytes_before"] == report["bytes_before"]
        assert totals["bytes_after"] == pytest.approx(report["bytes_after"], rel=0.02)

    def test_warnings_are_shown(self, gsq, toy):
        result = gsq("plan", "toy", "recipe.yaml", "--set", "ignore=[nothing.like.it]")
        assert "warning: ignore 'nothing.like.it' matches nothing in this model" in result.stdout.splitlines()

    def test_every_reason_why_not_on_a_line_of_its_own(self, gsq, toy):
        result = gsq("plan", "toy", "recipe.yaml", "--format", "plian", "--set", "algorithms=[round, gtpq]")
        assert (result.exit_code, result.stdout) == (2, "")
        assert [line.split("; ")[0] for line in errors(result)] == [
            "error: no format named 'plian'",
            "error: no algorithm named 'gtpq'",
        ]
        assert len(result.stderr.splitlines()) == 2

    def test_a_reason_of_several_lines_is_still_one(self, gsq, tmp_path, plugins):
        result = gsq("plan", tmp_path, "w8a8-rtn")
        assert result.exit_code == 2
        assert len(result.stderr.splitlines()) == 1


class TestSet:
    def test_the_numbers_change_and_the_scheme_is_not_called_by_its_old_name(self, gsq, toy):
        result = gsq("plan", "toy", "recipe.yaml", "--set", "scheme.weights.granularity=tensor", "--json")
        assert {row["scheme"] for row in json.loads(result.stdout)["layers"]} == {
            "w int8 tensor, a int8 token dynamic",
            "float",
        }

    @pytest.mark.parametrize(
        ("setting", "line"),
        [
            ("calibraton.samples=1", "Did you mean 'calibration'?"),
            (
                "algorithms.ruond.x=1",
                "no algorithm of this recipe named 'ruond'; there are: round. Did you mean 'round'?",
            ),
            ("algorithms.round.speed=1", "algorithm 'round': speed: no such field"),
            ("scheme", "'scheme': expected path=value, such as scheme.weights.group_size=64"),
        ],
    )
    def test_what_leads_nowhere_is_an_error(self, gsq, toy, setting, line):
        result = gsq("plan", "toy", "recipe.yaml", "--set", setting)
        assert result.exit_code == 2
        (error,) = errors(result)
        assert error.endswith(line)


class TestQuantize:
    def test_progress_on_stderr_and_a_summary_on_stdout(self, gsq, toy):
        result = gsq("quantize", "toy", "recipe.yaml", "-o", "out")
        assert result.exit_code == 0
        progress = result.stderr.splitlines()
        assert progress[0] == "opening toy"
        assert [line.split(":")[0] for line in progress[1:]] == [f"block {n} of 3" for n in (1, 2, 3)]
        summary = result.stdout.splitlines()
        assert summary[0] == "toy → out"
        assert "  layers  21 layers as W8A8" in summary
        assert summary[-1] == "  gsq eval out --against toy --text FILE"

    def test_options_replace_what_the_recipe_says(self, gsq, toy):
        needy = ["--set", "algorithms=[level, round]"]
        result = gsq("quantize", "toy", "recipe.yaml", "-o", "out", *needy)
        assert (result.exit_code, errors(result)) == (
            2,
            ["error: level needs calibration data: pass --calibration, or set calibration.data in the recipe"],
        )
        data = ["--calibration", "text.txt", "--samples", 3, "--seq-len", 16]
        assert gsq("quantize", "toy", "recipe.yaml", "-o", "out", *needy, *data).exit_code == 0
        report = json.loads((toy / "out/gsq_report.json").read_text())
        assert {row["tokens"] for row in report["layers"]} == {3 * 16}

    def test_an_interrupted_run_goes_on_and_ends_the_same(self, gsq, toy, monkeypatch):
        arguments = ["recipe.yaml", "--calibration", "text.txt", "--samples", 4, "--seq-len", 16]
        arguments += ["--set", "algorithms=[level, round]"]
        assert gsq("quantize", "toy", *arguments, "-o", "straight").exit_code == 0

        def interrupted(self, block, layers):
            if block.index == 2:
                raise KeyboardInterrupt
            return rounding(self, layers)

        with monkeypatch.context() as patch:
            rounding = Rounding.quantize
            patch.setattr(Rounding, "quantize", hookimpl(interrupted))
            result = gsq("quantize", "toy", *arguments, "-o", "out")
        assert result.exit_code == 130
        assert result.stderr.splitlines()[-1] == (
            "interrupted; finished blocks are kept in out, and the same command resumes the run"
        )
        assert result.stdout == ""

        result = gsq("quantize", "toy", *arguments, "-o", "out")
        assert result.exit_code == 0
        assert "resuming at block 3 of 3" in result.stderr.splitlines()
        assert tensors(toy / "out") == tensors(toy / "straight")

    def test_interrupted_before_anything_was_written(self, gsq, toy, monkeypatch):
        def interrupted(*arguments, **keywords):
            raise KeyboardInterrupt

        monkeypatch.setattr("gs_core.testing.toy.ToyAdapter.open", interrupted)
        result = gsq("quantize", "toy", "recipe.yaml", "-o", "out")
        assert result.exit_code == 130
        assert result.stderr.splitlines()[-1] == "interrupted before the first block; nothing was written"

    def test_a_folder_in_use_is_refused_and_restart_replaces_a_run_of_ours(self, gsq, toy):
        assert gsq("quantize", "toy", "recipe.yaml", "-o", "out").exit_code == 0
        result = gsq("quantize", "toy", "recipe.yaml", "-o", "out")
        assert result.exit_code == 1
        (error,) = errors(result)
        assert "--restart" in error
        assert gsq("quantize", "toy", "recipe.yaml", "-o", "out", "--restart").exit_code == 0

    def test_a_damaged_checkpoint_is_one_line(self, gsq, toy):
        shard = toy / "toy" / "model.safetensors"
        shard.write_bytes(shard.read_bytes()[:-100])
        result = gsq("quantize", "toy", "recipe.yaml", "-o", "out")
        assert result.exit_code == 1
        (error,) = errors(result)
        assert "cut short" in error

    def test_a_bug_is_not_dressed_up_as_a_mistake_of_the_user(self, toy, monkeypatch):
        def broken(self, layers):
            raise ZeroDivisionError

        monkeypatch.setattr(Rounding, "quantize", hookimpl(broken))
        result = CliRunner().invoke(app, ["quantize", "toy", "recipe.yaml", "-o", "out"])
        assert isinstance(result.exception, ZeroDivisionError)


class TestEval:
    arguments = ("--text", "text.txt", "--seq-len", 32, "--windows", 8)

    @pytest.fixture
    def out(self, gsq, toy):
        assert gsq("quantize", "toy", "recipe.yaml", "-o", "out").exit_code == 0
        return toy / "out"

    def test_one_model(self, gsq, toy):
        answer = json.loads(gsq("eval", "toy", *self.arguments, "--json").stdout)
        assert answer.pop("perplexity") > 1
        assert answer == {"model": "toy", "windows": 8, "seq_len": 32, "scheme": "float"}

    def test_against_the_original(self, gsq, out):
        answer = json.loads(gsq("eval", "out", *self.arguments, "--against", "toy", "--json").stdout)
        assert (answer["model"], answer["against"]["model"]) == ("out", "toy")
        assert answer["ratio"] == answer["perplexity"] / answer["against"]["perplexity"]
        assert answer["ratio"] != 1
        assert answer["divergence"] > 0
        assert 0 < answer["top1_agreement"] <= 1
        assert [sorted(block) for block in answer["blocks"]] == [
            ["block", "divergence", "propagated_sqnr", "sqnr"],
        ] * 3

    def test_against_itself(self, gsq, toy):
        result = gsq("eval", "toy", *self.arguments, "--against", "toy", "--json")

        def refuse(name: str) -> None:
            raise AssertionError(f"{name} is no JSON")

        answer = json.loads(result.stdout, parse_constant=refuse)
        assert (answer["divergence"], answer["top1_agreement"], answer["notes"]) == (0, 1, [])
        assert {(block["sqnr"], block["divergence"]) for block in answer["blocks"]} == {(None, 0)}

    def test_for_people(self, gsq, out):
        answer = json.loads(gsq("eval", "out", *self.arguments, "--against", "toy", "--json").stdout)
        lines = gsq("eval", "out", *self.arguments, "--against", "toy").stdout.splitlines()
        assert lines[2].split() == ["toy", "float", f"{answer['against']['perplexity']:.4f}"]
        assert lines[3].split()[-1] == f"{answer['perplexity']:.4f}"
        more = "higher" if answer["ratio"] > 1 else "lower"
        change = f"perplexity is {100 * abs(answer['ratio'] - 1):.2f} % {more} than the original's"
        assert lines[5] == f"ratio {answer['ratio']:.5f}: {change}"
        assert lines[6].startswith(f"divergence {answer['divergence']:.5f} ± ")
        assert lines[7] == f"top-1 agreement {100 * answer['top1_agreement']:.2f} %"
        assert lines[9].split() == ["block", "SQNR", "dB", "propagated", "dB", "divergence"]
        block = answer["blocks"][0]
        figures = [f"{block['sqnr']:.1f}", f"{block['propagated_sqnr']:.1f}", f"{block['divergence']:.5f}"]
        assert lines[11].split() == [block["block"], *figures]

    @pytest.mark.parametrize(
        ("changed", "line"),
        [
            (["--text", "none.txt"], "error: none.txt: no such text file or folder"),
            (["--text", ""], "error: the path of the text is empty; give a file"),
            (["--windows", "100000"], "error: the text has 9000 tokens, 100000 windows of 32 need 3200000; "),
        ],
    )
    def test_a_text_that_is_missing_or_too_short(self, gsq, toy, changed, line):
        result = gsq("eval", "toy", *self.arguments, *changed)
        assert result.exit_code == 1
        (error,) = errors(result)
        assert error.startswith(line)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["plan", "toy", "recipe.yaml", "--calibration", ""], "error: the path of the text is empty; give a file"),
        (["quantize", "toy", "recipe.yaml", "-o", ""], "error: the path of the output is empty; give a folder"),
        (["quantize", "", "recipe.yaml", "-o", "out"], "error: the path of the model is empty; give a checkpoint"),
        (["plan", "no/toy", "recipe.yaml"], "error: no/toy: no such model folder"),
        (["plan", "nowhere", "recipe.yaml", "--calibration", "a.txt"], "error: a.txt: no such text file"),
        (["plan", "nowhere", "recipe.yaml", "--set", "calibration.data=a.txt"], "error: a.txt: no such text"),
    ],
)
def test_paths_are_checked_before_a_model_is_opened(gsq, toy, arguments, line):
    result = gsq(*arguments)
    assert result.exit_code == 2
    (error,) = errors(result)
    assert error.startswith(line)
    assert not Path("out").exists()


def tensors(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}
