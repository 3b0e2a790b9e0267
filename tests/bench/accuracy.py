"""Perplexity, CPU seconds and peak memory of this project and of llm-compressor, row by row from the same tokens.

Both write a compressed-tensors folder; both folders are judged by transformers with compressed-tensors alone.
"""

import sys
from pathlib import Path

from measuring import HERE, Run, ours, run, table

sys.path.insert(0, str(HERE.parent / "lanes"))
from environments import EnvironmentFailed, python_of

DATA = HERE.parent / "data"
MODELS = ("tiny-llama", "tiny-llama-outliers")
RECIPES = (
    "w4a16-rtn",
    "w4a16-gptq",
    "w8a8-rtn",
    "w8a8-smoothquant",
    "w8a8-static-rtn",
    "w8a8-static-smoothquant",
)
PEER = "llm-compressor"


def peer(*arguments: str | Path) -> Run:
    """One quantization by llm-compressor, in its own environment."""
    try:
        python = python_of("llmcompressor")
    except EnvironmentFailed as error:
        return Run({}, str(error).splitlines()[0])
    return run([python, HERE / "quantize_llmcompressor.py", *arguments])


def perplexity(folder: Path, windows: Path) -> str:
    found = run([sys.executable, HERE.parent / "lanes" / "transformers_perplexity.py", folder, windows])
    return found.failure or f"{found['perplexity']:.3f}"


def measure(work: Path) -> str:
    """The table, with work folders under ``work``."""
    tokens = {model: work / f"tokens-{model}" for model in MODELS}
    for model, folder in tokens.items():
        ours("prepare.py", DATA / model, DATA / "calibration.txt", DATA / "evaluation.txt", folder)
    floats = [perplexity(DATA / model, tokens[model] / "evaluation.npy") for model in MODELS]
    rows: list[list[object]] = [["float", "", *floats, "–", "–", "–"]]
    for recipe in RECIPES:
        mine = [_cell("ours", model, recipe, tokens[model], work) for model in MODELS]
        theirs = [_cell(PEER, model, recipe, tokens[model], work) for model in MODELS]
        rows.append(_row(recipe, "ours", mine))
        rows.append(_row("", PEER, theirs))
        rows.append(_ratios([r for r, _ in mine], [r for r, _ in theirs]))
    what = (
        "Perplexity on 64 windows of 256 tokens, by transformers with compressed-tensors in float32 on the exported "
        "folder; calibration on the same 128 × 256 tokens. Seconds and memory are the mean of both models.\n\n"
    )
    return what + table(("recipe", "by", *MODELS, "CPU s, whole process", "CPU s, quantizing", "peak MiB"), rows)


def _cell(who: str, model: str, recipe: str, tokens: Path, work: Path) -> tuple[Run, str]:
    """What one quantization used, and the perplexity of the folder it wrote."""
    out = work / f"{who}-{model}-{recipe}"
    arguments = (DATA / model, recipe, out, tokens / "calibration.npy")
    ran = ours("quantize_ours.py", *arguments) if who == "ours" else peer(*arguments)
    return ran, ran.failure or perplexity(out, tokens / "evaluation.npy")


def _row(recipe: str, who: str, cells: list[tuple[Run, str]]) -> list[object]:
    """Seconds and memory are the mean of both models."""
    used = [_mean([ran for ran, _ in cells], key) for key in ("cpu", "quantize", "peak")]
    seconds = ["–" if value is None else f"{value:.1f}" for value in used[:2]]
    peak = "–" if used[2] is None else f"{used[2] / 2**20:.0f}"
    return [recipe, who, *(found for _, found in cells), *seconds, peak]


def _ratios(mine: list[Run], theirs: list[Run]) -> list[object]:
    row: list[object] = ["", "ours / theirs", "", ""]
    for key in ("cpu", "quantize", "peak"):
        a, b = _mean(mine, key), _mean(theirs, key)
        row.append(f"{a / b:.2f}" if a and b else "–")
    return row


def _mean(runs: list[Run], key: str) -> float | None:
    return None if any(ran.failure for ran in runs) else sum(ran[key] for ran in runs) / len(runs)
