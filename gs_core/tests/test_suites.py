"""The conformance suites find what they are there to find: each faulty plugin fails the test that names its fault."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from gs_core.testing import KernelSuite

FAULTY = Path(__file__).with_name("faulty.py")


@pytest.fixture(scope="module")
def classes():
    """The test classes of ``faulty.py`` by name."""
    spec = importlib.util.spec_from_file_location("faulty", FAULTY)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {name: value for name, value in vars(module).items() if name.startswith("Test")}


@pytest.fixture(scope="module")
def outcomes(classes, tmp_path_factory):
    """How each test ended that a fault should break, and all tests of the class with a known gap."""
    folder = tmp_path_factory.mktemp("outcomes")
    chosen = [f"{FAULTY}::{name}::{test}" for name, cls in classes.items() for test in sorted(cls.fails)]
    chosen.append(f"{FAULTY}::TestKnownGap")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "/dev/null"]
    options = ["--import-mode=importlib", f"--junitxml={folder / 'out.xml'}", f"--rootdir={FAULTY.parent}"]
    ran = subprocess.run([*command, *options, *chosen], capture_output=True, text=True)
    assert ran.returncode == pytest.ExitCode.TESTS_FAILED, ran.stdout[-2000:] + ran.stderr
    found = {}
    for case in ElementTree.parse(folder / "out.xml").iter("testcase"):
        outcome = next((child.tag for child in case if child.tag in ("failure", "error", "skipped")), "passed")
        found[case.get("classname").split(".")[-1], case.get("name")] = outcome
    return found


def test_every_fault_is_found(classes, outcomes):
    expected = {(name, test) for name, cls in classes.items() for test in cls.fails}
    assert len(expected) > 40
    missed = {place: outcomes.get(place, "did not run") for place in expected}
    assert {place: outcome for place, outcome in missed.items() if outcome != "failure"} == {}


def test_a_known_gap_is_expected_to_fail_and_nothing_else(classes, outcomes):
    mine = {test: outcome for (name, test), outcome in outcomes.items() if name == "TestKnownGap"}
    (gap,) = classes["TestKnownGap"].known_gaps
    assert mine.pop(gap) == "skipped", "an expected failure, in the words of the file"
    assert "int4 group, dynamic token" in str(mine)
    failed = {test for test, outcome in mine.items() if outcome != "passed"}
    assert failed == {"test_every_claimed_scheme_is_computed[int4 group, dynamic token]"}


def test_a_gap_that_names_no_test_is_an_error():
    with pytest.raises(TypeError, match=r"Misspelt\.known_gaps: the suite has no test named 'test_twise'"):
        type("Misspelt", (KernelSuite,), {"known_gaps": {"test_twise": "reason"}})
