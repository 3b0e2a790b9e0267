"""The command as it is installed, on a real model: what people see, and the exit codes."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gs_core import PlanError, quantize
from gs_core.cli import app
from gs_core.cli.progress import PlainLines

DATA = Path(__file__).parent / "data"
TINY = DATA / "tiny-llama"
GSQ = Path(sysconfig.get_path("scripts"), "gsq")
CALIBRATION = ("--calibration", DATA / "calibration.txt", "--samples", 4, "--seq-len", 64)


@pytest.fixture
def gsq(tmp_path, monkeypatch):
    """Run the command in an empty folder; an exception that it lets through fails the test."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object):
        return CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)

    return run


def errors(result) -> list[str]:
    return [line for line in result.stderr.splitlines() if line.startswith("error: ")]


def test_quantize_then_eval(gsq):
    estimate = json.loads(gsq("plan", TINY, "w4a16-rtn", "--json").stdout)["totals"]["bytes_after"]
    result = gsq("quantize", TINY, "w4a16-rtn", "-o", "out")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[0] == f"{TINY} → out"
    assert "  layers  28 layers as W4A16" in lines
    assert "  float   lm_head: outside the decoder blocks" in lines
    report = json.loads(Path("out/gsq_report.json").read_text())
    assert estimate == pytest.approx(report["bytes_after"], rel=0.01)

    text = ("--text", DATA / "evaluation.txt", "--windows", 8)
    answer = json.loads(gsq("eval", "out", *text, "--against", TINY, "--json").stdout)
    assert 1.005 < answer["ratio"] < 1.03
    assert answer["against"]["scheme"] == "float"


def test_plan_of_a_model_fits_on_a_screen(gsq):
    result = gsq("plan", TINY, "w8a8-smoothquant")
    rows = [line.split() for line in result.stdout.splitlines()]
    assert ["model.layers.{0..3}.mlp.up_proj", "W8A8", "smoothquant,", "rtn", "hf", "int-quantized"] in [
        row[:6] for row in rows
    ]
    assert sum(row[0].startswith("model.layers.") for row in rows if row) == 7
    assert result.stdout.endswith("needs calibration data\n")


def test_a_plan_whose_schemes_are_chosen_says_how_far_measuring_is_and_what_it_needed(gsq):
    mixed = "algorithms=[{mixed_precision: {bits: 5, candidates: [W4A16, W8A16]}}, gptq]"
    result = gsq("plan", TINY, "w4a16-gptq", "--set", mixed, *CALIBRATION)
    assert [line[:14] for line in result.stderr.splitlines()[1:]] == [f"measure {n} of 4" for n in range(1, 5)]
    assert re.search(r"^[45]\.\d+ bits a weight, predicted loss ", result.stdout, re.MULTILINE)
    assert result.stdout.endswith("needs calibration data\n")
    (error,) = errors(gsq("plan", TINY, "w4a16-gptq", "--set", mixed.replace("bits: 5,", ""), *CALIBRATION))
    assert error == ("error: algorithm 'mixed_precision': give one goal: bits (for each weight) or size (in gigabytes)")


def test_plan_says_everything_that_cannot_be_done(gsq):
    result = gsq("plan", TINY, "w4a16-gptq", "--set", "scheme.weights.group_size=96")
    assert (result.exit_code, result.stdout) == (2, "")
    problems = [re.search(r"group_size 96 does not divide in_features (\d+)", line) for line in errors(result)]
    assert sorted(problem[1] for problem in problems) == ["256", "512"]
    assert len(result.stderr.splitlines()) == 2


def test_the_same_problem_in_every_block_is_said_once(gsq):
    result = gsq("plan", TINY, "w8a8-rtn", "--set", 'overrides=[{match: "*.up_proj", scheme: W4A16}]')
    assert result.exit_code == 2
    (error,) = errors(result)
    assert error.startswith("error: model.layers.0.mlp.gate_proj is W8A8 and model.layers.0.mlp.up_proj is W4A16: ")
    assert error.endswith(" (and 3 more like it)")


def test_a_device_that_is_not_there(gsq):
    result = gsq("plan", TINY, "w8a8-rtn", "--device", "cudaa")
    assert result.exit_code == 2
    (error,) = errors(result)
    assert error.startswith("error: device 'cudaa' cannot be used: ")


def test_calibration_data_is_asked_for(gsq):
    result = gsq("quantize", TINY, "w4a16-gptq", "-o", "out")
    assert result.exit_code == 2
    assert errors(result) == [
        "error: gptq needs calibration data: pass --calibration, or set calibration.data in the recipe"
    ]
    assert not Path("out").exists()


def test_an_unfinished_run_is_kept_from_others_and_goes_on(gsq, monkeypatch):
    command = ("quantize", TINY, "w8a8-smoothquant", *CALIBRATION, "-o")
    assert gsq(*command, "straight").exit_code == 0

    def interrupt_after_two(self):
        if self.block == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PlainLines, "finished", interrupt_after_two)
        assert gsq(*command, "out").exit_code == 130

    other = gsq("quantize", TINY, "w8a8-rtn", "-o", "out")
    assert other.exit_code == 1
    (error,) = errors(other)
    assert re.search(r"out holds an unfinished run with another .*recipe", error)

    result = gsq(*command, "out")
    assert result.exit_code == 0
    assert "resuming at block 3 of 4" in result.stderr.splitlines()
    written = {path.name for path in Path("straight").iterdir()}
    assert {path.name for path in Path("out").iterdir()} == written
    for name in written - {"gsq_report.json"}:
        assert Path("out", name).read_bytes() == Path("straight", name).read_bytes(), name


def test_an_unfinished_run_is_not_a_model(gsq, tmp_path):
    (tmp_path / "out" / ".gsq").mkdir(parents=True)
    result = gsq("eval", "out", "--text", DATA / "evaluation.txt")
    assert errors(result) == ["error: out is an unfinished run; run the same quantize command again to finish it"]


def test_errors_name_flags_on_the_command_line_and_arguments_in_python(gsq):
    long = ("--calibration", DATA / "calibration.txt", "--seq-len", 10**6)
    (error,) = errors(gsq("quantize", TINY, "w4a16-gptq", "-o", "out", *long))
    assert error.endswith("lower --seq-len")
    with pytest.raises(PlanError, match="lower `seq_len=`"):
        quantize(TINY, "w4a16-gptq", "out", calibration=DATA / "calibration.txt", seq_len=10**6)


def test_a_scheme_as_a_recipe_leads_to_its_recipes(gsq):
    (error,) = errors(gsq("plan", TINY, "W4A16_ASYM"))
    assert error.startswith("error: W4A16_ASYM is a scheme, not a recipe; recipes with it: w4a16-asym-rtn, ")


def test_the_summary_says_what_opens_the_result_and_how_the_recipe_was_changed(gsq):
    result = gsq("quantize", TINY, "w4a16-rtn", "-o", "out", "--set", "scheme.weights.group_size=64")
    lines = result.stdout.splitlines()
    assert "  recipe  w4a16-rtn with scheme.weights.group_size=64" in lines
    assert "  opens   in transformers with compressed-tensors, vLLM" in lines


@pytest.mark.parametrize("command", [(), ("quantize",), ("plan",), ("eval",), ("recipes",), ("plugins",), ("schema",)])
def test_every_command_has_short_help(gsq, command):
    result = gsq(*command, "-h")
    assert result.exit_code == 0 and result.stdout.startswith("Usage: ")


def test_the_module_is_the_command():
    ran = subprocess.run([sys.executable, "-m", "gs_core", "--version"], capture_output=True, text=True)
    assert ran.stdout.startswith("gsq ")


def test_in_a_terminal_the_progress_is_drawn_and_gone(tmp_path):
    control, terminal = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    command = [GSQ, "quantize", TINY, "w4a16-rtn", "-o", tmp_path / "out"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=terminal, env=environment, text=True)
    os.close(terminal)
    shown = read_all(control).decode()
    summary = process.communicate()[0]
    assert process.returncode == 0
    assert "opening " in shown
    assert re.search(r"4/4 +memory", shown)
    assert shown.endswith("\x1b[?25h\r\x1b[1A\x1b[2K"), "the cursor is back and the line is gone"
    assert summary.startswith(f"{TINY} → ")
    assert "\x1b" not in summary


def read_all(handle: int) -> bytes:
    """What a terminal is sent until nobody writes to it any more (Linux says so with an error)."""
    found = b""
    while True:
        try:
            piece = os.read(handle, 65536)
        except OSError:
            piece = b""
        if not piece:
            os.close(handle)
            return found
        found += piece


@pytest.mark.parametrize("command", [["recipes"], ["recipes", "w4a16-gptq"]])
def test_a_reader_that_closes_the_pipe_ends_the_command_without_a_traceback(command):
    read, write = os.pipe()
    os.close(read)
    program = [sys.executable, "-c", "from gs_core.cli import main; main()"]
    ran = subprocess.run([*program, *command], stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert ran.returncode == -signal.SIGPIPE
    assert ran.stderr == b""
