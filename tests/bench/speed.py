"""How near calibration comes to the arithmetic that it cannot do without, and how far from it the peers are."""

import shutil
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from arithmetic import necessary
from checkpoints import SHAPES
from measuring import Run, ours, table
from peers import TOOLS, quantize
from rows import SPEED

HEADER = ("recipe", "by", "CPU s, whole process", "CPU s, quantizing", "least s", "reached", "peak MiB")
KEY = 2  # columns that name a line
Line = list[str]


def measure(work: Path, tools: Collection[str], known: list[Line]) -> Iterator[str]:
    """The section, again after each line: what is measured now in place of what was ``known``."""
    model, tokens = work / "mid", work / "mid.npy"
    made = ours("checkpoints.py", "mid", model, tokens)
    rate = ours("rate.py")
    if made.failure or rate.failure:
        yield f"Not measured: {made.failure or rate.failure}\n"
        return
    what = (
        f"{made['bytes'] / 2e6:.0f} M parameters, {made['samples']} × {made['seq_len']} tokens. One thread multiplies "
        f"float32 matrices at {rate['float32'] / 1e9:.0f} GFLOP/s, those of the blocks at {rate['model'] / 1e9:.0f}. "
        "*Least* is the necessary arithmetic at these rates, *reached* its share of the seconds of quantizing.\n\n"
    )
    lines = {tuple(line[:KEY]): line for line in known if line[1] in SPEED.get(line[0], ())}
    for recipe, by in SPEED.items():
        least = sum(seconds for _, _, seconds in _least(recipe, rate))
        for tool in [tool for tool in by if tool in tools]:
            out = work / "out"
            ran = quantize(tool, model, recipe, out, tokens)
            shutil.rmtree(out, ignore_errors=True)
            lines[recipe, tool] = [recipe, tool, *_numbers(ran.answer, least, ran.failure)]
            ordered = sorted(lines.values(), key=lambda line: (list(SPEED).index(line[0]), TOOLS.index(line[1])))
            yield what + table(HEADER, ordered) + "\n" + _parts(rate)


def _numbers(answer: dict[str, float], least: float, failure: str) -> Sequence[str]:
    if failure:
        return [failure, *["–"] * 4]
    seconds = f"{answer['cpu']:.1f}", f"{answer['quantize']:.1f}"
    return [*seconds, f"{least:.0f}", f"{100 * least / answer['quantize']:.0f} %", f"{answer['peak'] / 2**20:.0f}"]


def _least(recipe: str, rate: Run) -> list[tuple[str, int, float]]:
    """What a recipe cannot do without: its name, operations, and seconds at the machine's rates."""
    runs, products = necessary(recipe, SHAPES["mid"])
    own = [(name, ops, ops / rate["float32"]) for name, ops in products.items()]
    return [("runs of the blocks", runs, runs / rate["model"]), *own] if runs else own


def _parts(rate: Run) -> str:
    """The necessary arithmetic of what calibrates, part by part."""
    parts = [(recipe, *part) for recipe in SPEED for part in _least(recipe, rate)]
    rows = [[recipe, name, f"{ops / 1e9:.0f}", f"{seconds:.1f}"] for recipe, name, ops, seconds in parts]
    return table(("recipe", "necessary", "GFLOP", "s at these rates"), rows)
