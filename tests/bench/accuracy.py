"""Perplexity, CPU seconds and peak memory of this project and its peers, row by row from the same tokens."""

import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
from measuring import HERE, Run, ours, table
from peers import OURS, PEERS, perplexity, quantize
from rows import ROWS

DATA = HERE.parent / "data"
MODELS = ("tiny-llama", "tiny-llama-outliers")
HEADER = ("row", "by", "recipe", *MODELS, "CPU s, whole process", "CPU s, quantizing", "peak MiB")
KEY = 3  # columns that name a line
WHAT = (
    "Perplexity on 64 windows of 256 tokens; calibration on the same 128 × 256 tokens for all, each tool with its own "
    "defaults and in an environment of its own. Every tool writes a folder, and transformers opens it and computes in "
    "float32: with compressed-tensors where the folder is of that format (ours, llm-compressor, AutoRound), else with "
    "the tool itself (GPTQModel, AMD Quark). Seconds and memory are of quantizing and writing the folder, the mean of "
    "both models; a first run of each peer, which compiles what it compiles once, is not counted.\n\n"
)
Line = list[str]


def measure(work: Path, rows: Collection[str], tools: Collection[str], known: list[Line]) -> Iterator[str]:
    """The section, again after each line: what is measured now in place of what was ``known``."""
    lines = {tuple(line[:KEY]): line for line in known if line[1] in ROWS.get(line[0], {})}
    tokens = {model: work / f"tokens-{model}" for model in MODELS}
    for model, folder in tokens.items():
        ours("prepare.py", DATA / model, DATA / "calibration.txt", DATA / "evaluation.txt", folder)
    _compile(work, tokens[MODELS[0]], tools)
    floats = [_cell(perplexity(OURS, DATA / model, tokens[model] / "evaluation.npy")) for model in MODELS]
    lines["float", "", ""] = ["float", "", "", *floats, "–", "–", "–"]
    for row, found in ROWS.items():
        for tool, recipes in found.items():
            if row not in rows or tool not in tools:
                continue
            for key in [key for key in lines if key[:2] == (row, tool)]:
                del lines[key]
            if isinstance(recipes, str):
                lines[row, tool, "–"] = [row, tool, "–", f"none: {recipes}", *["–"] * 4]
            else:
                for recipe in recipes:
                    lines[row, tool, recipe] = [row, tool, recipe, *_measured(work, tool, recipe, tokens)]
                    yield _section(lines)
    yield _section(lines)


def _compile(work: Path, tokens: Path, tools: Collection[str]) -> None:
    """A small run of each peer, which leaves what it compiles in the user's cache."""
    few = work / "few.npy"
    np.save(few, np.load(tokens / "calibration.npy")[:2])
    for tool, recipes in ROWS["W4A16 g128"].items():
        if tool in tools and tool != OURS:
            quantize(tool, DATA / MODELS[0], recipes[0], work / f"first-{PEERS[tool].lane}", few)


def _measured(work: Path, tool: str, recipe: str, tokens: dict[str, Path]) -> Line:
    """Two perplexities, then the means of seconds and memory."""
    runs, found = [], []
    for model in MODELS:
        out = work / "out"
        ran = quantize(tool, DATA / model, recipe, out, tokens[model] / "calibration.npy")
        found.append(ran.failure or _cell(perplexity(tool, out, tokens[model] / "evaluation.npy")))
        runs.append(ran)
        shutil.rmtree(out, ignore_errors=True)
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
