"""Nobody waits for a library that is not needed yet."""

import resource
import subprocess
import sys

import pytest

import gs_core

HELP = "import sys; sys.argv = ['gsq', '--help']; from gs_core.cli import main; main()"


def fresh(code: str) -> tuple[set[str], float]:
    """The top-level modules that a fresh interpreter imports for this code, and its seconds of CPU."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run = subprocess.run([sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert run.returncode == 0, run.stderr
    modules = {line.split("|")[-1].strip().split(".")[0] for line in run.stderr.splitlines() if "|" in line}
    return modules, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize("code", ["import gs_core", HELP], ids=["import gs_core", "gsq --help"])
def test_starting_takes_less_than_a_third_of_a_second_and_no_library(code):
    modules, seconds = fresh(code)
    assert "gs_core" in modules
    assert not modules & {"numpy", "pydantic", "yaml", "rich", "torch"}
    assert seconds < 0.3


def test_all_of_gs_core_needs_no_framework():
    modules, _ = fresh("from gs_core import *; import gs_core.cli.live, gs_core.cli.summary")
    assert "numpy" in modules
    assert not modules & {"torch", "transformers", "mindspore", "tensorflow", "jax"}


@pytest.mark.parametrize("name", gs_core.__all__)
def test_every_public_name_exists(name):
    assert getattr(gs_core, name) is not None
    assert name in dir(gs_core)


def test_a_name_that_does_not_exist():
    with pytest.raises(AttributeError, match="module 'gs_core' has no attribute 'quantise'"):
        gs_core.quantise  # noqa: B018
