"""Perplexity, CPU seconds and peak memory of this project and its peers, row by row from the same tokens."""

import shutil
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from measuring import HERE, Run, ours, table
from peers import OURS, PEERS, perplexity, quantize
from rows import ROWS, SLOW

DATA = HERE.parent / "data"
MODELS = ("tiny-llama", "tiny-llama-outliers")
HEADER = ("row", "by", "recipe", *MODELS, "CPU s, whole process", "CPU s, quantizing", "peak MiB")
KEY = 3  # columns that name a line
WHAT = (
    "Perplexity on 64 windows of 256 tokens; calibration on the same 128 × 256 tokens for all, each tool with its own "
    "defaults and in an environment of its own. Every tool writes a folder, which is opened again and computes in "
    "float32: by transformers with compressed-tensors where it is of that format (ours, llm-compressor, AutoRound), by "
    "transformers with GPTQModel, by AMD Quark's import, and by this project where a format is for NPUs alone "
    "(flatquant). Seconds and memory are of quantizing and writing the folder, "
    "the mean of both models; a first run of each peer, which compiles what it compiles once, is not counted.\n\n"
    "What was done so that all could run: llm-compressor's AWQ pins memory for an accelerator, which is left out; AMD "
    "Quark's SmoothQuant has alpha 0.5 and its rotations are R1, R2 and R4, better here than its defaults; its "
    "three-bit weights are written as floats, because packing them fails on layers with two groups to a row.\n\n"
)
Line = list[str]


def measure(
    work: Path, rows: Collection[str], tools: Collection[str], full: bool, jobs: int, known: list[Line]
) -> Iterator[str]:
    """The section, again after each line: what is measured now in place of what was ``known``. ``full``: the slow
    recipes too. ``jobs``: 2 measures both models at once."""
    lines = {tuple(line[:KEY]): line for line in known if line[2] in ROWS.get(line[0], {}).get(line[1], ())}
    tokens = {model: work / f"tokens-{model}" for model in MODELS}
    for model, folder in tokens.items():
        ours("prepare.py", DATA / model, DATA / "calibration.txt", DATA / "evaluation.txt", folder)
    _compile(work, tokens[MODELS[0]], tools)
    floats = [_cell(perplexity(OURS, DATA / model, tokens[model] / "evaluation.npy")) for model in MODELS]
    lines["float", "", ""] = ["float", "", "", *floats, "–", "–", "–"]
    for row, found in ROWS.items():
        for tool, recipes in found.items():
            if isinstance(recipes, str):
                lines[row, tool, "–"] = [row, tool, "–", f"none: {recipes}", *["–"] * 4]
                continue
            for recipe in recipes:
                if row in rows and tool in tools and (full or (tool, recipe) not in SLOW):
                    lines[row, tool, recipe] = [row, tool, recipe, *_measured(work, tool, recipe, tokens, jobs)]
                    yield _section(lines)
    yield _section(lines)


def _compile(work: Path, tokens: Path, tools: Collection[str]) -> None:
    """A small run of each peer, which leaves what it compiles in the user's cache."""
    few = work / "few.npy"
    np.save(few, np.load(tokens / "calibration.npy")[:2])
    for tool, recipes in ROWS["W4A16 g128"].items():
        if tool in tools and tool != OURS:
            quantize(tool, DATA / MODELS[0], recipes[0], work / f"first-{PEERS[tool].lane}", few)


def _measured(work: Path, tool: str, recipe: str, tokens: dict[str, Path], jobs: int) -> Line:
    """Two perplexities, then the means of seconds and memory."""

    def one(model: str) -> tuple[Run, str]:
        out = work / f"out-{model}"
        ran = quantize(tool, DATA / model, recipe, out, tokens[model] / "calibration.npy")
        found = ran.failure or _cell(perplexity(tool, out, tokens[model] / "evaluation.npy"))
        shutil.rmtree(out, ignore_errors=True)
        return ran, found

    with ThreadPoolExecutor(jobs) as pool:
        runs, found = zip(*pool.map(one, MODELS), strict=True)
    if any(ran.failure for ran in runs):
        return [*found, "–", "–", "–"]
    cpu, seconds, peak = (sum(ran[key] for ran in runs) / len(runs) for key in ("cpu", "quantize", "peak"))
    return [*found, f"{cpu:.1f}", f"{seconds:.1f}", f"{peak / 2**20:.0f}"]


def _cell(found: Run) -> str:
    return found.failure or f"{found['perplexity']:.3f}"


def _section(lines: dict[tuple[str, ...], Line]) -> str:
    """In the order of ``ROWS``, whenever a line was measured."""
    order = ["float", *ROWS]
    tools = ["", OURS, *PEERS]
    return WHAT + table(HEADER, sorted(lines.values(), key=lambda line: (order.index(line[0]), tools.index(line[1]))))
