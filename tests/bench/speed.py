"""How near calibration comes to the arithmetic that it cannot do without."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from accuracy import PEER, peer
from arithmetic import necessary
from checkpoints import SHAPES
from measuring import Run, ours, table

RECIPES = ("w4a16-rtn", "w8a8-smoothquant", "w4a16-awq", "w4a16-gptq")
# Another day, the same kind of machine: GPTQ of the same shape of model.
KNOWN = "For scale, measured earlier on the same kind of machine: GPTQ by llm-compressor 131 s, by GPTQModel 179 s.\n"


def measure(work: Path, full: bool) -> str:
    """The tables; ``full`` measures the peer too."""
    model, tokens = work / "mid", work / "mid.npy"
    made = ours("checkpoints.py", "mid", model, tokens)
    rate = ours("rate.py")
    if made.failure or rate.failure:
        return f"Not measured: {made.failure or rate.failure}\n"
    rows: list[list[object]] = []
    for recipe in RECIPES:
        least = sum(seconds for _, _, seconds in parts(recipe, rate))
        for who in ("ours", PEER) if full else ("ours",):
            arguments = (model, recipe, work / f"mid-{who}-{recipe}", tokens)
            ran = ours("quantize_ours.py", *arguments) if who == "ours" else peer(*arguments)
            shutil.rmtree(arguments[2], ignore_errors=True)
            rows.append([recipe, who, *_numbers(ran.answer, least, ran.failure)])
    shutil.rmtree(model, ignore_errors=True)
    header = ("recipe", "by", "CPU s, whole process", "CPU s, quantizing", "least s", "reached", "peak MiB")
    what = (
        f"{made['bytes'] / 2e6:.0f} M parameters, {made['samples']} × {made['seq_len']} tokens. One thread multiplies "
        f"float32 matrices at {rate['float32'] / 1e9:.0f} GFLOP/s, those of the blocks at {rate['model'] / 1e9:.0f}; "
        "*least* is the necessary arithmetic at these rates, *reached* its share of the seconds used.\n\n"
    )
    necessities = [(recipe, *part) for recipe in RECIPES for part in parts(recipe, rate)]
    rest = [[recipe, name, f"{ops / 1e9:.0f}", f"{seconds:.1f}"] for recipe, name, ops, seconds in necessities]
    return what + table(header, rows) + "\n" + table(("recipe", "necessary", "GFLOP", "s"), rest) + "\n" + KNOWN


def parts(recipe: str, rate: Run) -> list[tuple[str, int, float]]:
    """What a recipe cannot do without: its name, operations, and seconds at the machine's rates."""
    runs, products = necessary(recipe, SHAPES["mid"])
    own = [(name, ops, ops / rate["float32"]) for name, ops in products.items()]
    return [("runs of the blocks", runs, runs / rate["model"]), *own] if runs else own


def _numbers(answer: dict[str, float], least: float, failure: str) -> Sequence[str]:
    if failure:
        return [failure, *["–"] * 4]
    reached = f"{100 * least / answer['quantize']:.0f} %" if least else "–"
    seconds = f"{answer['cpu']:.1f}", f"{answer['quantize']:.1f}"
    return [*seconds, f"{least:.0f}" if least else "–", reached, f"{answer['peak'] / 2**20:.0f}"]
