"""How many of transformers' causal language models go through, with no code of ours naming them.

    python tests/architectures/sweep.py [--out docs/architectures.md] [name ...]

Each is made tiny (``tiny.py``), saved, quantized from its folder by both recipes, and the export is loaded by
transformers with compressed-tensors, whose perplexity on random tokens must agree with ours. What fails is kept in
the table with its reason.
"""

import argparse
import contextlib
import importlib.metadata
import io
import logging
import os
import re
import tempfile
import time
import traceback
import warnings
from pathlib import Path

import numpy as np
import tiny
import torch
import transformers
from transformers import CompressedTensorsConfig
from transformers import logging as transformers_logging

from gs_core import GoldenStickError, evaluate, quantize

RECIPES = ("w4a16-gptq", "w8a8-static-smoothquant")
SAMPLES, SEQ_LEN = 16, 32
AGREEMENT = 0.02
"""How far the engine's perplexity may be from ours, relative. Engines differ in the precision of scales."""


def go_through(model: type, recipe: str, folder: Path, tokens: np.ndarray) -> str:
    """``ok`` or why not."""
    out = folder.with_name(f"{folder.name}-{recipe}")
    try:
        report = quantize(folder, recipe, out, calibration=tokens, samples=SAMPLES, seq_len=SEQ_LEN)
        ours = evaluate(out, tokens, seq_len=SEQ_LEN, windows=SAMPLES).perplexity
    except GoldenStickError as error:
        return str(error).splitlines()[0]
    how = ""
    theirs = _engine_perplexity(model, out, tokens)
    if isinstance(theirs, str) and recipe.startswith("w4a16"):
        # Some models' own initialisation reads every Linear's weight, which a packed one does not have.
        how = " (dequantized when loaded)"
        retried = _engine_perplexity(model, out, tokens, CompressedTensorsConfig(dequantize=True))
        theirs = retried if isinstance(retried, float) else theirs
    if isinstance(theirs, str):
        return f"the engine refuses: {theirs}"
    if not abs(theirs / ours - 1) < AGREEMENT:
        return f"the engine computes {theirs:.2f}, we {ours:.2f}"
    return f"ok, {len(report.layers)} layers{how}"


def _engine_perplexity(model_class: type, folder: Path, tokens: np.ndarray, quantization=None) -> float | str:
    options = {"quantization_config": quantization} if quantization else {}
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            model = model_class.from_pretrained(folder, dtype=torch.float32, **options).eval()
        ids = torch.from_numpy(tokens)
        with torch.no_grad():
            logits = model(ids, use_cache=False).logits.float()
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        return float(loss.exp())
    except Exception as error:  # an engine may raise anything; it is the result
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:200]


def sweep(names: list[str]) -> "Rows":
    """Name, class and the result of each recipe."""
    rows = []
    for name in names:
        started = time.monotonic()
        results = {}
        with tempfile.TemporaryDirectory() as temporary:
            try:
                model = tiny.make(name)
            except Exception as error:  # transformers itself cannot build it
                rows.append((name, "", dict.fromkeys(RECIPES, f"transformers cannot build it: {error}"[:160])))
                print(f"{name:28} transformers cannot build it", flush=True)
                continue
            folder = Path(temporary) / "model"
            model.save_pretrained(folder)
            generator = np.random.default_rng(0)
            tokens = generator.integers(3, 250, (SAMPLES, SEQ_LEN), dtype=np.int64)
            for recipe in RECIPES:
                try:
                    results[recipe] = go_through(type(model), recipe, folder, tokens)
                except Exception:  # a bug of ours: show it whole
                    results[recipe] = "BUG " + traceback.format_exc().strip().splitlines()[-1][:200]
                    if os.environ.get("TRACE"):
                        traceback.print_exc()
        rows.append((name, type(model).__name__, results))
        shown = " | ".join(results[r] for r in RECIPES)
        print(f"{name:28} {time.monotonic() - started:5.1f} s  {shown}", flush=True)
    return rows


Rows = list[tuple[str, str, dict[str, str]]]


def passed(rows: Rows) -> list[str]:
    return [name for name, _, results in rows if all(r.startswith("ok") for r in results.values())]


def table(rows: Rows) -> str:
    """The page of the docs: the count, what does not go through and why, then everything."""
    through = passed(rows)
    lines = [
        "# Architectures",
        "",
        f"Of the {len(rows)} causal language models in transformers {transformers.__version__}, **{len(through)}** "
        f"({len(through) / len(rows):.1%}) go through `{RECIPES[0]}` and `{RECIPES[1]}` end to end, with no code of "
        "ours naming them: made tiny with random weights, quantized from their folders, loaded by transformers with "
        f"compressed-tensors {importlib.metadata.version('compressed-tensors')}, and computing within "
        f"{AGREEMENT:.0%} of the perplexity that `gsq eval` computes.",
        "",
        "Made by `python tests/architectures/sweep.py --out docs/architectures.md`. *Dequantized when loaded*: the "
        "model's own initialisation in transformers reads every layer's `weight`, which a packed layer does not have, "
        "so transformers needs `CompressedTensorsConfig(dequantize=True)` to load it.",
        "",
        "## What does not go through",
        "",
        "| model | " + " | ".join(f"`{r}`" for r in RECIPES) + " |",
        "| --- | --- | --- |",
    ]
    lines += [_row(name, results) for name, _, results in rows if name not in through]
    lines += ["", "## What does", "", "| model | class | " + " | ".join(f"`{r}`" for r in RECIPES) + " |"]
    lines += ["| --- | --- | --- | --- |"]
    lines += [_row(f"{name} | {cls}", results) for name, cls, results in rows if name in through]
    return "\n".join(lines) + "\n"


def _row(name: str, results: dict[str, str]) -> str:
    cells = (" ".join(re.sub(r"/\S*/model: ", "", results[r]).replace("|", "/").split()) for r in RECIPES)
    return f"| {name} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--out", type=Path, help="write the page of the docs")
    given = parser.parse_args()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    warnings.filterwarnings("ignore")
    rows = sweep(given.names or tiny.names())
    print(f"{len(passed(rows))} of {len(rows)} go through both recipes ({len(passed(rows)) / len(rows):.1%})")
    if given.out:
        given.out.write_text(table(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
