"""What the scripts that quantize share, whatever environment they run in: nothing but the standard library."""

import argparse
import json
import os
from collections.abc import Collection
from pathlib import Path


def asked(recipes: Collection[str] | None = None) -> argparse.Namespace:
    """``MODEL RECIPE OUT TOKENS.npy --group-size N``, the recipe one of those, where they are given.

    The group size is that of weights of three and four bits; weights of two bits have groups of 32.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("recipe", choices=recipes)
    for name in ("out", "tokens"):
        parser.add_argument(name)
    parser.add_argument("--group-size", type=int, default=128)
    return parser.parse_args()


def cpu_seconds() -> float:
    """User and system seconds of this process and its finished children."""
    return sum(os.times()[:4])


def peak_bytes() -> int:
    """The largest resident size so far (VmHWM: the kernel's ru_maxrss also remembers the parent's)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no VmHWM")


def report(**found: object) -> None:
    """Print the last line of a measured script."""
    print(json.dumps({**found, "cpu": cpu_seconds(), "peak": peak_bytes()}), flush=True)
