"""Peak memory of quantizing a checkpoint of 3 GiB: it must not grow with the model."""

import shutil
from pathlib import Path

from measuring import ours, table

LIMIT = int(1.2 * 2**30)
RECIPES = ("w4a16-rtn", "w4a16-gptq")


def measure(work: Path) -> tuple[str, bool]:
    """The table, and whether every peak (imports included) is under ``LIMIT``."""
    model, tokens = work / "big", work / "big.npy"
    made = ours("checkpoints.py", "big", model, tokens)
    if made.failure:
        return f"The checkpoint could not be written: {made.failure}\n", False
    rows, good = [], True
    for recipe in RECIPES:
        ran = ours("quantize_ours.py", model, recipe, work / f"big-{recipe}", tokens)
        shutil.rmtree(work / f"big-{recipe}", ignore_errors=True)
        under = not ran.failure and ran["peak"] < LIMIT
        good = good and under
        verdict = ran.failure or ("under" if under else "**over the limit**")
        peak, cpu = ("–", "–") if ran.failure else (f"{ran['peak'] / 2**20:.0f}", f"{ran['cpu']:.0f}")
        rows.append([recipe, peak, f"{LIMIT / 2**20:.0f}", verdict, cpu])
    shutil.rmtree(model, ignore_errors=True)
    what = (
        "Peak resident size (VmHWM), imports included, of quantizing "
        f"{made['bytes'] / 2**30:.2f} GiB of bfloat16 in {made['blocks']} blocks with "
        f"{made['samples']} × {made['seq_len']} calibration tokens.\n\n"
    )
    header = ("recipe", "peak MiB", "limit MiB", "", "CPU s")
    return what + table(header, rows), good
