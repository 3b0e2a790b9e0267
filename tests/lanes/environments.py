"""Virtual environments for tests that need heavy packages of their own: made once, kept in a cache.

    python tests/lanes/environments.py vllm                                 prints that lane's interpreter
    python tests/lanes/environments.py mindspore gs_core adapters/mindformers    one that has these rooms, too

A lane is a requirements file beside this one. Lines in it that begin so are for what no requirement can say:

    # uninstall: A B                packages to remove after the install
    # without dependencies: A B     packages to add as they are
    # aside: A B                    the same, into the folder `aside`, which is on no path until a test puts it there

The environment is made anew when the file or the Python installation changes.
"""

import argparse
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parent


class EnvironmentFailed(RuntimeError):
    """The environment could not be made; the message ends with the last lines of pip's output."""


def python_of(name: str) -> Path:
    """The interpreter of lane `name`, whose environment is made first if it is missing."""
    requirements = HERE / f"{name}.txt"
    if not requirements.is_file():
        raise EnvironmentFailed(f"no lane named {name!r}; there are: {', '.join(names())}")
    folder = cache() / "environments" / f"{name}-{_key(requirements)}"
    python, ready = folder / "bin" / "python", folder / "ready"
    if ready.exists():
        return python
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _lock(Path(f"{folder}.lock")) as lock:
        if not ready.exists():  # another process may have made it while this one waited
            shutil.rmtree(folder, ignore_errors=True)
            _make(folder, python, requirements, lock)
            ready.touch()  # last: a folder without it is a half-built one
    return python


def beside(name: str, rooms: Sequence[Path]) -> Path:
    """An interpreter that has what lane `name` has, and `rooms` of a checkout as they lie there.

    It is kept in the lane's folder of the cache, one for each set of rooms, and costs seconds: its packages are the
    lane's own, seen through a path file.
    """
    lane = python_of(name)
    key = hashlib.sha256("\n".join(f"{r}\n{(r / 'pyproject.toml').read_text()}" for r in rooms).encode()).hexdigest()
    folder = lane.parents[1] / "beside" / key[:12]
    python, ready = folder / "bin" / "python", folder / "ready"
    folder.parent.mkdir(exist_ok=True)
    with _lock(Path(f"{folder}.lock")) as lock:
        if not ready.exists():
            shutil.rmtree(folder, ignore_errors=True)
            log = Path(f"{folder}.log")
            _run([[sys.executable, "-I", "-m", "venv", folder]], log, lock)
            packages = next((lane.parents[1] / "lib").glob("python*/site-packages"))
            own = next((folder / "lib").glob("python*/site-packages"))
            (own / "lane.pth").write_text(f"{packages}\n")
            editable = [argument for room in rooms for argument in ("-e", room)]
            options = ["--no-deps", "--no-build-isolation", "--quiet"]
            _run([[python, "-I", "-m", "pip", "install", *options, *editable]], log, lock)
            ready.touch()
    return python


def made_once(kind: str, name: str, make: Callable[[Path], None]) -> Path:
    """The folder ``name`` in the cache. If it is missing, ``make`` fills a new empty folder."""
    folder = cache() / kind / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _lock(Path(f"{folder}.lock")):
        if not folder.is_dir():
            half = folder.with_name(f"{name}.partial")
            shutil.rmtree(half, ignore_errors=True)
            half.mkdir()
            make(half)
            half.rename(folder)
    return folder


def pip_download(requirement: str, folder: Path) -> Path:
    """The wheel of one requirement, without its dependencies. Raises `EnvironmentFailed`."""
    log = folder / "pip.log"
    _run([[sys.executable, "-I", "-m", "pip", "download", "--no-deps", "--dest", folder, requirement]], log)
    log.unlink()
    return next(folder.glob("*.whl"))


def names() -> list[str]:
    """The lanes there are."""
    return sorted(file.stem for file in HERE.glob("*.txt"))


def cache() -> Path:
    """Where what tests build is kept between runs."""
    own, users = os.environ.get("GOLDEN_STICK_CACHE"), os.environ.get("XDG_CACHE_HOME")
    return Path(own).expanduser() if own else Path(users or Path.home() / ".cache") / "golden-stick"


def _key(requirements: Path) -> str:
    """Twelve hex digits that change with the requirements and with the Python installation."""
    return hashlib.sha256(f"{sys.version}\n{sys.base_prefix}\n{requirements.read_text()}".encode()).hexdigest()[:12]


def _make(folder: Path, python: Path, requirements: Path, lock: int) -> None:
    """Create `folder`, install the requirements into it, then remove what they say to.

    Each step holds the file `lock` too, so that none outlives its killed parent to meet the next one's work.
    """
    log = Path(f"{folder}.log")
    print(
        f"making the environment {folder.name}: this takes minutes, once; pip writes to {log}",
        file=sys.stderr,
    )
    pip: list[str | Path] = [python, "-I", "-m", "pip"]
    steps: list[list[str | Path]] = [
        [sys.executable, "-I", "-m", "venv", folder],
        [*pip, "install", "-r", requirements],
    ]
    if unwanted := _directive(requirements, "uninstall"):
        steps.append([*pip, "uninstall", "--yes", *unwanted])
    if bare := _directive(requirements, "without dependencies"):
        steps.append([*pip, "install", "--no-deps", *bare])
    if apart := _directive(requirements, "aside"):
        steps.append([*pip, "install", "--no-deps", "--target", folder / "aside", *apart])
    _run(steps, log, lock)


def _run(steps: Sequence[Sequence[str | Path]], log: Path, lock: int | None = None) -> None:
    """Carry out the commands; their output goes to `log`. Raises `EnvironmentFailed` at the first that fails."""
    variables = {k: v for k, v in os.environ.items() if k != "PIP_CONSTRAINT"}  # that one is for our own
    held = [] if lock is None else [lock]
    with log.open("a") as output:
        for step in steps:
            ran = subprocess.run(step, stdout=output, stderr=output, env=variables, pass_fds=held)
            if ran.returncode:
                tail = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
                raise EnvironmentFailed(f"{log.stem} could not be made; see {log}:\n{tail}")


def _directive(requirements: Path, name: str) -> list[str]:
    """The words of every line `# name: ...`."""
    return " ".join(re.findall(rf"^# {name}:(.*)$", requirements.read_text(), re.MULTILINE)).split()


@contextmanager
def _lock(file: Path) -> Iterator[int]:
    """Hold `file` locked against other processes; gives its descriptor. A process that dies lets go."""
    with file.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield handle.fileno()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="print the interpreter of a lane's environment, made if missing")
    parser.add_argument("name", choices=names())
    parser.add_argument("rooms", nargs="*", type=Path, help="rooms of this checkout to put beside it")
    given = parser.parse_args()
    try:
        print(beside(given.name, [room.resolve() for room in given.rooms]) if given.rooms else python_of(given.name))
    except EnvironmentFailed as error:
        sys.exit(str(error))
