"""Which library multiplies float32 matrices on a processor.

torch asks MKL. On Intel's processors that is the faster one, by 5 to 50 % as shapes differ; on AMD's with AVX-512 it
reaches half the speed of oneDNN. torch asks oneDNN where less than float32 will do, and what it then loses depends on
the processor: without AMX it has nothing faster than exact float32 products, and makes those. So, but on Intel's, it is
tried, and used where nothing is lost.
"""

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

FULL = 1 + 2.0**-8 + 2.0**-16 + 2.0**-23
"""A float32 that no narrower format holds, nor the sum of two bfloat16."""
SIZES = (16, 256)


@contextmanager
def fast_products(device: str) -> Iterator[None]:
    """For a while, the fastest exact products. Somebody who has asked torch for a precision keeps it."""
    before = None if device != "cpu" or _is_intel() else _precision()
    if before != "highest":
        yield
        return
    try:
        torch.set_float32_matmul_precision("medium")
        if not all(map(_exact, SIZES)):
            torch.set_float32_matmul_precision(before)
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@cache
def _is_intel() -> bool:
    try:
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:  # not Linux
        return "GenuineIntel" in platform.processor()


def _precision() -> str | None:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # it was set in more than one way, for one library of several
        return None


def _exact(size: int) -> bool:
    """Whether products of ``(size, size)`` keep what float32 holds."""
    x, one = torch.full((size, size), FULL), torch.eye(size)
    return bool((x @ one == x).all() and (one @ x == x).all())
