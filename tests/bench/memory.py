"""Peak memory of quantizing a checkpoint of 3 GiB: it must not grow with the model."""

import shutil
from pathlib import Path

from measuring import ours, table

LIMIT = int(1.2 * 2**30)
RECIPES = ("w4a16-rtn", "w4a16-gptq")
OVER = "**over the limit**"


def measure(work: Path) -> str:
    """The table; a peak (imports included) that is not under ``LIMIT``, or unknown, is marked ``OVER``."""
    model, tokens = work / "big", work / "big.npy"
    made = ours("checkpoints.py", "big", model, tokens)
    if made.failure:
        return f"{OVER}: the checkpoint could not be written: {made.failure}\n"
    rows = []
    for recipe in RECIPES:
        ran = ours("quantize_ours.py", model, recipe, work / f"big-{recipe}", tokens)
        shutil.rmtree(work / f"big-{recipe}", ignore_errors=True)
        if ran.failure:
            rows.append([recipe, "–", "–", f"{OVER}? {ran.failure}", "–"])
            continue
        verdict = "under" if ran["peak"] < LIMIT else OVER
        rows.append([recipe, f"{ran['peak'] / 2**20:.0f}", f"{LIMIT / 2**20:.0f}", verdict, f"{ran['cpu']:.0f}"])
    shutil.rmtree(model, ignore_errors=True)
    what = (
        "Peak resident size (VmHWM), imports included, of quantizing "
        f"{made['bytes'] / 2**30:.2f} GiB of bfloat16 in {made['blocks']} blocks with "
        f"{made['samples']} × {made['seq_len']} calibration tokens.\n\n"
    )
    return what + table(("recipe", "peak MiB", "limit MiB", "", "CPU s"), rows)
