"""The example in the docs, installed as its author's users would, found and run by its name."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from gs_core.testing import write_distribution, write_toy

EXAMPLE = Path(__file__).parents[2] / "docs" / "example_plugin"
GSQ = Path(sysconfig.get_path("scripts"), "gsq")

QUANTIZE = """
import json, sys
from gs_core import quantize
from gs_core.testing import ToyAdapter
from gs_schemas import Recipe
recipe = Recipe.parse({"scheme": "W4A16", "algorithms": json.loads(sys.argv[3])})
print(json.dumps(quantize(sys.argv[1], recipe, sys.argv[2], adapter=ToyAdapter()).data))
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """What pip leaves on ``sys.path``."""
    source, site = (tmp_path_factory.mktemp(name) for name in ("source", "site"))
    shutil.copytree(EXAMPLE, source, dirs_exist_ok=True)  # building may leave files behind
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, "--target", site, source], check=True)
    return site


@pytest.fixture
def site(built, tmp_path):
    """The same, to add neighbours to."""
    return Path(shutil.copytree(built, tmp_path / "site"))


def run(site, *command):
    """What a command prints where the folder is on the path. It must succeed."""
    environment = os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([str(part) for part in command], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def listed(site):
    """The rows of ``gsq plugins`` by name."""
    return {row["name"]: row for row in json.loads(run(site, GSQ, "plugins", "--json"))}


def quantized(site, folder, out, *algorithms):
    """The report of a run of the toy."""
    return json.loads(run(site, sys.executable, "-c", QUANTIZE, folder, out, json.dumps(algorithms)))


def test_it_is_two_files_and_a_test():
    assert sorted(path.name for path in EXAMPLE.iterdir() if path.is_file()) == [
        "gs_halfway.py",
        "pyproject.toml",
        "test_halfway.py",
    ]


def test_the_wheel_holds_the_module_alone(built):
    assert sorted(path.name for path in built.iterdir() if path.name != "__pycache__") == [
        "golden_stick_halfway-0.1.0.dist-info",
        "gs_halfway.py",
    ]


def test_it_passes_the_suite(site):
    """Its own tests, as its author runs them."""
    shutil.copy(EXAMPLE / "test_halfway.py", site)
    test = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", "/dev/null", site / "test_halfway.py"]
    assert " passed" in run(site, *test)


def test_it_is_listed(site):
    row = listed(site)["halfway"]
    assert row == {
        "kind": "algorithm",
        "name": "halfway",
        "distribution": "golden-stick-halfway",
        "version": "0.1.0",
        "status": "ok",
    }


def test_it_quantizes_by_its_name_and_better_than_rounding(site, tmp_path):
    toy = write_toy(tmp_path / "toy")
    mine = quantized(site, toy, tmp_path / "mine", "halfway")
    plain = quantized(site, toy, tmp_path / "plain", "rtn")
    assert mine["plugins"]["algorithm halfway"] == "golden-stick-halfway 0.1.0"
    assert [row["algorithms"] for row in mine["layers"]] == [["halfway"]] * 14
    assert all(a["error"] < b["error"] for a, b in zip(mine["layers"], plain["layers"], strict=True))
    halfway_none = quantized(site, toy, tmp_path / "none", {"halfway": {"ratio": 0.0}})
    assert [row["error"] for row in halfway_none["layers"]] == [row["error"] for row in plain["layers"]]


def test_a_broken_neighbour_does_not_hurt(site, tmp_path):
    write_distribution(
        site,
        "acme-broken",
        "0.3",
        modules={"acme_broken": "import no_such_library"},
        algorithm="acme = acme_broken:Acme",
    )
    rows = listed(site)
    assert rows["halfway"]["status"] == "ok"
    assert rows["acme"]["status"] == (
        "broken: algorithm 'acme' (acme-broken 0.3) cannot be imported: "
        "ModuleNotFoundError: No module named 'no_such_library'"
    )
    assert quantized(site, write_toy(tmp_path / "toy"), tmp_path / "out", "halfway")["layers"]


def test_a_rival_of_the_same_name_is_named(site):
    write_distribution(site, "acme-rival", "2.0", modules={"acme_rival": ""}, algorithm="halfway = acme_rival:Acme")
    assert listed(site)["halfway"]["status"] == (
        "conflict: algorithm 'halfway' is claimed by acme-rival 2.0 and golden-stick-halfway 0.1.0; "
        "uninstall one of them"
    )
