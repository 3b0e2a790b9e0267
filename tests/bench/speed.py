"""How near calibration comes to the arithmetic that it cannot do without, and how far from it the peers are."""

import shutil
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from arithmetic import necessary, seconds
from checkpoints import DTYPES, SHAPES
from measuring import ours, table
from peers import TOOLS, quantize
from rows import SPEED

HEADER = ("recipe", "by", "CPU s, whole process", "CPU s, quantizing", "least s", "reached", "peak MiB")
KEY = 2  # columns that name a line
Line = list[str]


def measure(work: Path, tools: Collection[str], known: list[Line]) -> Iterator[str]:
    """The section, again after each line: what is measured now in place of what was ``known``."""
    model, tokens = work / "mid", work / "mid.npy"
    rates = ours("rate.py")
    dtype = max(DTYPES, key=lambda name: rates.answer.get(name, 0.0))  # all compute in the dtype that is stored
    made = ours("checkpoints.py", "mid", model, tokens, dtype)
    if made.failure or rates.failure:
        yield f"Not measured: {made.failure or rates.failure}\n"
        return
    what = (
        f"{made['parameters'] / 1e6:.0f} M parameters in {dtype}, the dtype that this processor multiplies fastest, "
        f"{made['samples']} × {made['seq_len']} tokens. One thread multiplies "
        f"matrices at {', '.join(f'{rate / 1e9:.0f} GFLOP/s in {name}' for name, rate in rates.answer.items())}; "
        "*least* is the necessary arithmetic at those rates, *reached* its share of the seconds of quantizing.\n\n"
    )
    lines = {tuple(line[:KEY]): line for line in known if line[1] in SPEED.get(line[0], ())}
    for recipe, by in SPEED.items():
        least = sum(seconds(necessary(recipe, SHAPES["mid"]), rates.answer).values())
        for tool in [tool for tool in by if tool in tools]:
            out = work / "out"
            ran = quantize(tool, model, recipe, out, tokens)
            shutil.rmtree(out, ignore_errors=True)
            lines[recipe, tool] = [recipe, tool, *_numbers(ran.answer, least, ran.failure)]
            ordered = sorted(lines.values(), key=lambda line: (list(SPEED).index(line[0]), TOOLS.index(line[1])))
            yield what + table(HEADER, ordered) + "\n" + _parts(rates.answer)


def _numbers(answer: dict[str, float], least: float, failure: str) -> Sequence[str]:
    if failure:
        return [failure, *["–"] * 4]
    seconds = f"{answer['cpu']:.1f}", f"{answer['quantize']:.1f}"
    return [*seconds, f"{least:.0f}", f"{100 * least / answer['quantize']:.0f} %", f"{answer['peak'] / 2**20:.0f}"]


def _parts(rates: dict[str, float]) -> str:
    """The necessary arithmetic, part by part."""
    rows = []
    for recipe in SPEED:
        parts = necessary(recipe, SHAPES["mid"])
        rows += [[recipe, name, f"{parts[name] / 1e9:.0f}", f"{s:.1f}"] for name, s in seconds(parts, rates).items()]
    return table(("recipe", "necessary", "GFLOP", "s at that rate"), rows)
