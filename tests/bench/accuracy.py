"""Divergence, perplexity, CPU seconds and memory of this project and its peers, row by row from the same tokens."""

import shutil
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

import numpy as np
from measuring import ours, table
from peers import OURS, PEERS, divergence, quantize
from rows import ROWS, SLOW
from tested_models import DATA, MODELS

NAMES = ("row", "by", "recipe")
COST = "{} cost"
HEADER = (*NAMES, *MODELS, *map(COST.format, MODELS))
NONE = "–"
WHAT = (
    "A cell shows the Kullback-Leibler divergence of the predictions from the float model's, in nats per token times "
    "1000, and the perplexity in parentheses. Lower is better. A dash in place of the divergence: the line is of "
    "2026-11-29, when perplexity alone was measured. Cost is CPU seconds and peak memory of quantizing and "
    "writing the folder. The bundled models are calibrated on 128 × 256 tokens and measured on 64 windows "
    "of 256; SmolLM2-135M and the random model of Gemma 3's shape, whose hidden sizes are larger, on 32 × 256 and 32 "
    "windows. The tokens are the same for all tools. Groups of 128 are groups of 64 on SmolLM2, whose hidden size is "
    "576. Each tool has its own defaults and an environment of its own. Every tool writes a folder, which is opened "
    "again and computes in float32: by transformers with compressed-tensors where it is of that format (ours, "
    "llm-compressor, AutoRound), by transformers with GPTQModel, by AMD Quark's import, and by this project where a "
    "format is for NPUs alone (flatquant). A first run of each peer, which compiles code once, is not counted. The "
    "model of Gemma 3's shape is measured at eight bits alone.\n\n"
    "What was done so that all could run: llm-compressor's AWQ pins memory for an accelerator, which is left out; AMD "
    "Quark's SmoothQuant has alpha 0.5 and its rotations are R1, R2 and R4, better here than its defaults; its "
    "three-bit weights are written as floats, because packing them fails on layers with two groups to a row.\n\n"
)
Line = dict[str, str]
"""Cells by the names of their columns."""


def measure(
    work: Path,
    rows: Collection[str],
    tools: Collection[str],
    models: Sequence[str],
    recipes: str,
    full: bool,
    jobs: int,
    known: list[list[str]],
) -> Iterator[str]:
    """The section, again after each line: new cells replace those of ``known``.

    recipes: a glob. full: the slow recipes too. jobs: how many models of a line are measured at once.
    """
    lines = _known(known)
    folders = {model: MODELS[model].folder(work) for model in models}
    tokens = {model: work / f"tokens-{model}" for model in models}
    for model, folder in folders.items():
        counts = str(MODELS[model].samples), str(MODELS[model].windows)
        texts = DATA / "calibration.txt", DATA / "evaluation.txt"
        ours("prepare.py", folder, *texts, tokens[model], *counts)
        line = lines.setdefault(("float", "", ""), _line("float", "", ""))
        found = divergence(OURS, folder, folder, tokens[model] / "evaluation.npy")
        line[model] = found.failure or f"0 ({found['perplexity']:.3f})"
    _compile(work, folders[models[0]], tokens[models[0]], tools)
    for row, by_tool in ROWS.items():
        for tool, of_tool in by_tool.items():
            if isinstance(of_tool, str):
                line = lines[row, tool, NONE] = _line(row, tool, NONE)
                line[HEADER[len(NAMES)]] = f"none: {of_tool}"
                continue
            for recipe in (recipe for recipe in of_tool if fnmatchcase(recipe, recipes)):
                if row in rows and tool in tools and (full or (tool, recipe) not in SLOW):
                    line = lines.setdefault((row, tool, recipe), _line(row, tool, recipe))
                    mine = [model for model in models if row in (MODELS[model].rows or ROWS)]
                    measured = partial(_measured, work, tool, recipe, folders, tokens)
                    with ThreadPoolExecutor(jobs) as pool:
                        for cells in pool.map(measured, mine):
                            line |= cells
                    yield _section(lines)
    yield _section(lines)


def _known(cells: list[list[str]]) -> dict[tuple[str, ...], Line]:
    """Lines of a page with the same columns, without recipes that are no longer measured."""
    lines = [dict(zip(HEADER, line, strict=True)) for line in cells if len(line) == len(HEADER)]
    return {
        tuple(line[name] for name in NAMES): line
        for line in lines
        if line["row"] == "float" or line["recipe"] in ROWS.get(line["row"], {}).get(line["by"], ())
    }


def _line(*names: str) -> Line:
    return dict.fromkeys(HEADER, NONE) | dict(zip(NAMES, names, strict=True))


def _compile(work: Path, model: Path, tokens: Path, tools: Collection[str]) -> None:
    """A small run of each peer, which leaves what it compiles in the user's cache."""
    few = work / "few.npy"
    np.save(few, np.load(tokens / "calibration.npy")[:2])
    for tool, recipes in ROWS["W4A16 g128"].items():
        if tool in tools and tool != OURS:
            quantize(tool, model, recipes[0], work / f"first-{PEERS[tool].lane}", few, 64)


def _measured(
    work: Path, tool: str, recipe: str, folders: dict[str, Path], tokens: dict[str, Path], model: str
) -> Line:
    """The cells of one model. folders, tokens: by model."""
    out, folder = work / f"out-{model}", folders[model]
    ran = quantize(tool, folder, recipe, out, tokens[model] / "calibration.npy", MODELS[model].group_size)
    found = divergence(tool, out, folder, tokens[model] / "evaluation.npy") if not ran.failure else ran
    shutil.rmtree(out, ignore_errors=True)
    if found.failure:
        return {model: found.failure, COST.format(model): NONE}
    return {
        model: f"{1000 * found['divergence']:.2f} ({found['perplexity']:.3f})",
        COST.format(model): f"{ran['quantize']:.1f} s, {ran['peak'] / 2**20:.0f} MiB",
    }


def _section(lines: dict[tuple[str, ...], Line]) -> str:
    """In the order of ``ROWS``, whenever a line was measured."""
    order, tools = ["float", *ROWS], ["", OURS, *PEERS]
    ordered = sorted(lines.values(), key=lambda line: (order.index(line["row"]), tools.index(line["by"])))
    return WHAT + table(HEADER, [[line[name] for name in HEADER] for line in ordered])
