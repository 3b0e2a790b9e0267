"""Each room's wheel passes the room's tests alone; all of them together are the default installation.

Environments are made by uv, which links what its cache holds: an environment with torch takes seconds.
"""

import ast
import json
import os
import shutil
import subprocess
import sys
import tomllib
from configparser import ConfigParser
from pathlib import Path
from zipfile import ZipFile

import pytest

pytestmark = pytest.mark.slow

LOAD_ENTRY_POINTS = """
import sys
from importlib.metadata import distribution
for point in distribution(sys.argv[1]).entry_points:
    point.load()
"""


def run(*command, **options) -> str:
    """Run a command to its end and give what it printed; its failure is the test's."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{' '.join(done.args)}\n{done.stdout[-8000:]}\n{done.stderr[-8000:]}"
    return done.stdout


def uv_settings() -> dict[str, str]:
    """What pip is configured with, in uv's words: uv does not read pip's settings."""
    names = {
        "index-url": "UV_DEFAULT_INDEX",
        "extra-index-url": "UV_INDEX",
        "find-links": "UV_FIND_LINKS",
        "trusted-host": "UV_INSECURE_HOST",
        "cert": "SSL_CERT_FILE",
    }
    settings = {"UV_INDEX_STRATEGY": "unsafe-best-match"}  # pip's own way to choose
    lines = run(sys.executable, "-m", "pip", "config", "list").splitlines()
    for line in sorted(lines, key=lambda line: line.startswith(":env:")):  # the environment has the last word
        key, _, value = line.partition("=")
        if name := names.get(key.rpartition(".")[2]):
            words = ast.literal_eval(value).split()
            settings[name] = ("," if name == "UV_FIND_LINKS" else " ").join(words)
    return settings


class Environment:
    """A fresh virtual environment."""

    def __init__(self, folder: Path, constraints: Path, *options: str):
        self.constraints = constraints
        self.variables = uv_settings() | {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        self.bin = folder / "bin"
        self.call_uv("venv", "--python", sys.executable, *options, folder)

    def run(self, program: str, *arguments, **options) -> str:
        return run(self.bin / program, *arguments, env=self.variables, **options)

    def call_uv(self, *arguments) -> str:
        return run(sys.executable, "-m", "uv", "--quiet", *arguments, env=self.variables)

    def pip(self, action: str, *arguments) -> str:
        return self.call_uv("pip", action, "--python", self.bin / "python", *arguments)

    def install(self, *requirements) -> None:
        self.pip("install", "--constraints", self.constraints, *requirements)
        self.pip("check")


@pytest.fixture(scope="session")
def wheels(rooms, tmp_path_factory) -> dict[str, Path]:
    """The wheel of every room, by the room's name."""
    house = tmp_path_factory.mktemp("wheelhouse")
    folders = [room.folder for room in rooms]
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", house, *folders)
    found = {wheel.name.split("-")[0].replace("_", "-"): wheel for wheel in house.glob("*.whl")}
    assert set(found) == {room.name for room in rooms}
    return found


@pytest.fixture(scope="session")
def default(rooms, checkout) -> list:
    """The rooms that the metapackage lists."""
    project = tomllib.loads((checkout / "pyproject.toml").read_text())["project"]
    listed = {line.split(" @ ")[0] for line in project["dependencies"]}
    return [room for room in rooms if room.name in listed]


@pytest.fixture(scope="session")
def constraints(checkout, wheels, tmp_path_factory) -> Path:
    """The checkout's constraints, and our names bound to these wheels whatever an index may hold."""
    ours = [f"{name} @ {wheel.as_uri()}" for name, wheel in wheels.items()]
    path = tmp_path_factory.mktemp("constraints") / "constraints.txt"
    path.write_text("\n".join([(checkout / "constraints.txt").read_text(), *ours, ""]))
    return path


def plugins(environment: Environment) -> dict[str, str]:
    """What `gsq plugins` lists: each name with its status."""
    listing = json.loads(environment.run("gsq", "plugins", "--json"))
    return {entry["name"]: entry["status"] for entry in listing}


def provides(room) -> list[str]:
    """The names under which a room's plugins are found."""
    return [name for points in room.project.get("entry-points", {}).values() for name in points]


def test_a_wheel_holds_its_package_and_nothing_else(room, wheels):
    with ZipFile(wheels[room.name]) as wheel:
        names = [name for name in wheel.namelist() if ".dist-info/" not in name]
        metadata = {Path(name).name: name for name in wheel.namelist() if ".dist-info/" in name}
        points = ConfigParser(delimiters="=")
        if "entry_points.txt" in metadata:
            points.read_string(wheel.read(metadata["entry_points.txt"]).decode())
    source = [path for path in room.source.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    beside = [path.name for path in room.folder.glob("*.pth")]  # what a start of Python reads
    assert sorted(names) == sorted([*beside, *(path.relative_to(room.source.parent).as_posix() for path in source)])
    assert {f"{room.package}/__init__.py", f"{room.package}/py.typed"} <= set(names)

    declared = dict(room.project.get("entry-points", {}))
    if "scripts" in room.project:
        declared["console_scripts"] = room.project["scripts"]
    assert {group: dict(points[group]) for group in points.sections()} == declared


def test_a_room_passes_its_tests_alone(room, wheels, constraints, checkout, tmp_path):
    environment = Environment(tmp_path / "venv", constraints)
    environment.install(f"{room.name}[test] @ {wheels[room.name].as_uri()}")
    environment.run("python", "-c", LOAD_ENTRY_POINTS, room.name, cwd=tmp_path)
    # Away from the checkout, whose sources must not be importable by chance.
    shutil.copytree(room.folder / "tests", tmp_path / "tests")
    shutil.copy(checkout / "pyproject.toml", tmp_path)
    environment.run("python", "-m", "pytest", "-q", "-m", "not slow and not lane", "tests", cwd=tmp_path)


def test_pip_install_gives_a_working_default(default, checkout, constraints, tmp_path):
    copy = tmp_path / "checkout"
    files = run("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", cwd=checkout)
    for name in filter(None, files.split("\0")):
        if (checkout / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(checkout / name, copy / name)

    environment = Environment(tmp_path / "venv", constraints, "--seed")
    # The libraries by uv, which is quick; the checkout by pip, which is what is shown here.
    lines = [line for room in default for line in room.project["dependencies"]]
    environment.install(*(line for line in lines if not line.startswith("golden-stick-")))
    environment.run("python", "-m", "pip", "install", ".", "-c", "constraints.txt", cwd=copy)
    environment.run("python", "-m", "pip", "check")
    shutil.rmtree(copy)
    assert plugins(environment) == {name: "ok" for room in default for name in provides(room)}


def test_a_plugin_can_be_taken_away(default, wheels, constraints, tmp_path):
    environment = Environment(tmp_path / "venv", constraints)
    environment.install(*(wheels[room.name] for room in default))
    gone = next(room for room in default if room.kind == "gs_plugins")
    environment.pip("uninstall", gone.name)
    environment.pip("check")
    left = [room for room in default if room is not gone]
    environment.run("python", "-c", "\n".join(f"import {room.package}" for room in left), cwd=tmp_path)
    assert plugins(environment) == {name: "ok" for room in left for name in provides(room)}
