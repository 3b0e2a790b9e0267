"""Every preset on every model, run as a user runs it: `make presets` writes docs/presets.md.

    presets.py [--models smollm2] [--presets "w8a8-*"] [--jobs 2] [--out docs/presets.md]

Each cell is one `gsq quantize` and one `gsq eval --against`, each in a process of its own on one thread. With --out the
page is written after every cell, and cells that are not measured stay as they are there. Exits with 1 when a preset
failed: one that the plan refuses has not failed.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from measuring import HERE, ONE_THREAD, lines_of, machine, table

from gs_core.cli.errors import CANNOT_BE_PLANNED
from gs_schemas import RECIPES

sys.path.insert(0, str(HERE.parent))
from models.gemma_shaped import gemma_shaped
from models.smollm2 import smollm2

DATA = HERE.parent / "data"
FAILED = "**failed**"


@dataclass(frozen=True)
class Measured:
    """A model of the table: how to get its folder, and how much of the bundled texts it is measured on.

    Attributes:
        samples, seq_len: calibration.
        windows: of 256 tokens each, for the evaluation.
    """

    folder: Callable[[Path], Path]
    samples: int
    seq_len: int
    windows: int


MODELS = {
    "tiny-llama": Measured(lambda work: DATA / "tiny-llama", 16, 128, 16),
    "tiny-llama-outliers": Measured(lambda work: DATA / "tiny-llama-outliers", 16, 128, 16),
    "smollm2": Measured(lambda work: smollm2(), 4, 128, 8),
    "gemma-shaped": Measured(lambda work: gemma_shaped(work / "gemma-shaped"), 4, 128, 8),
}
TITLE = """# Presets

Every preset on two bundled models, on a real one and on a random one: written by `make presets`.

- **tiny-llama**, **tiny-llama-outliers**: the bundled models, {tiny}.
- **smollm2**: SmolLM2-135M-Instruct, a real Llama of 30 blocks from the package index, {real}. Its hidden size, 576, is
  no multiple of 128: layers get groups of 64.
- **gemma-shaped**: a random model of Gemma 3's shape with massive activations (`tests/models/gemma_shaped.py`), {real}.
  Its predictions are random numbers: only figures of one column can be compared.

A cell shows the Kullback-Leibler divergence of the quantized model's predictions from the float model's, in nats per
token times 1000, and the CPU seconds of `gsq quantize`. Smaller is better. *refused* is the plan's answer, before any
weight is read. A dash is a cell that was not measured yet; `tests/test_presets.py` runs every preset on two blocks of
smollm2 and of gemma-shaped.

{machine}

"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", choices=MODELS, action="append", help="may be given more than once")
    parser.add_argument("--presets", default="*", help="a glob over names of presets")
    parser.add_argument("--jobs", type=int, default=1, help="cells at once")
    parser.add_argument("--out", type=Path, help="put what was measured into this page")
    given = parser.parse_args()
    known = lines_of(given.out.read_text(encoding="utf-8")) if given.out and given.out.is_file() else []
    cells = {(line[0].strip("`"), model): cell for line in known for model, cell in zip(MODELS, line[1:], strict=True)}
    wanted = [(p, m) for m in given.models or MODELS for p in RECIPES if fnmatchcase(p, given.presets)]
    with tempfile.TemporaryDirectory(prefix="golden-stick-presets-") as work:
        for key, cell in _measured(wanted, Path(work), given.jobs):
            cells[key] = cell
            print(*key, cell, flush=True)
            if given.out:
                given.out.write_text(_page(cells), encoding="utf-8")
    return 1 if any(cells[key].startswith(FAILED) for key in wanted) else 0


def _measured(wanted: list[tuple[str, str]], work: Path, jobs: int) -> Iterator[tuple[tuple[str, str], str]]:
    folders = {model: MODELS[model].folder(work) for model in dict.fromkeys(model for _, model in wanted)}
    with ThreadPoolExecutor(jobs) as pool:
        running = {pool.submit(_cell, p, folders[m], MODELS[m], work / f"{m}-{p}"): (p, m) for p, m in wanted}
        for done in as_completed(running):
            yield running[done], done.result()


def _cell(preset: str, folder: Path, measured: Measured, out: Path) -> str:
    calibration = ["--calibration", DATA / "calibration.txt", "--samples", measured.samples]
    code, _, said, seconds = _gsq("quantize", folder, preset, "-o", out, *calibration, "--seq-len", measured.seq_len)
    if code == CANNOT_BE_PLANNED:
        return f"refused: {said}"
    if code:
        return f"{FAILED}: {said}"
    text = ["--text", DATA / "evaluation.txt", "--windows", measured.windows]
    code, answer, said, _ = _gsq("eval", out, "--against", folder, *text, "--no-blocks", "--json")
    subprocess.run(["rm", "-rf", out], check=True)
    return f"{FAILED}: {said}" if code else _figures(1000 * json.loads(answer)["divergence"], seconds)


def _figures(divergence: float, seconds: float) -> str:
    return f"{divergence:.{0 if divergence >= 100 else 1 if divergence >= 10 else 2}f} ({seconds:.0f} s)"


def _gsq(*arguments: object) -> tuple[int, str, str, float]:
    """Exit code, standard output, the last line of standard error, and CPU seconds of one command."""
    command = [sys.executable, "-c", "from gs_core.cli import main; main()", *map(str, arguments)]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, env=os.environ | ONE_THREAD)
        used = _wait(process)
        out.seek(0)
        err.seek(0)
        errors = [line for line in err.read().splitlines() if line.strip()] or [f"exit status {process.returncode}"]
        seconds = used.ru_utime + used.ru_stime
        return process.returncode, out.read(), errors[-1].removeprefix("error: ")[:300], seconds


def _wait(process: subprocess.Popen) -> resource.struct_rusage:
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return used


def _page(cells: dict[tuple[str, str], str]) -> str:
    lines = [[f"`{preset}`", *(cells.get((preset, model), "–") for model in MODELS)] for preset in RECIPES]
    tiny, real = (
        f"{m.samples} × {m.seq_len} tokens of calibration, {m.windows} × 256 of evaluation"
        for m in (MODELS["tiny-llama"], MODELS["smollm2"])
    )
    return TITLE.format(tiny=tiny, real=real, machine=machine()) + table(("preset", *MODELS), lines)


if __name__ == "__main__":
    sys.exit(main())
