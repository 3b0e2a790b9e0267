"""Running one measured process after another, on one thread each."""

import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
THREADS = "1"
ONE_THREAD = {
    "OMP_NUM_THREADS": THREADS,
    "MKL_NUM_THREADS": THREADS,
    "OPENBLAS_NUM_THREADS": THREADS,
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "CUDA_VISIBLE_DEVICES": "",
}


@dataclass(frozen=True)
class Run:
    """What one process said in its last line (``answer``), or, in one line, why it said nothing (``failure``)."""

    answer: dict[str, Any]
    failure: str = ""

    def __getitem__(self, key: str) -> Any:
        return self.answer[key]


def run(command: Sequence[str | Path], **variables: str) -> Run:
    """Run a script whose last line on stdout is a JSON object. Other output goes to stderr."""
    print("+", *(Path(part).name for part in command), file=sys.stderr, flush=True)
    text, variables = [str(part) for part in command], {**os.environ, **ONE_THREAD, **variables}
    with tempfile.TemporaryDirectory() as cwd:  # peers leave logs where they run
        ran = subprocess.run(text, capture_output=True, text=True, cwd=cwd, env=variables)
    lines = ran.stdout.strip().splitlines()
    if ran.returncode == 0 and lines:
        return Run(json.loads(lines[-1]))
    said = ran.stderr.strip().splitlines() or [f"exit status {ran.returncode}"]
    print(*said[-20:], sep="\n", file=sys.stderr)
    return Run({}, said[-1][:200])


def ours(script: str, *arguments: str | Path, **variables: str) -> Run:
    """Run a script of this folder with this interpreter."""
    return run([sys.executable, HERE / script, *arguments], **variables)


def machine() -> str:
    """What was measured on, in words that name no host."""
    cpu = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "compressed-tensors"))
    return (
        f"{cpu}, {os.cpu_count()} cores, {memory:.0f} GiB; every process on {THREADS} thread; "
        f"Python {platform.python_version()}, {packages}; {date.today().isoformat()}"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "/") for cell in line) + " |" for line in lines) + "\n"


def lines_of(section: str) -> list[list[str]]:
    """The lines of the first table in a section, without its header."""
    found = [line for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|\n ").split(" | ")] for line in found[2:]]
