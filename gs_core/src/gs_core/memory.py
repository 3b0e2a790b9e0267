"""What this process holds, and giving it back."""

import ctypes
import gc
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LARGE = 64 * 2**20
"""Arrays of this many bytes get memory of their own, which returns to the system with them. The slices that numerics
work on are smaller, and what products are prepared in is: fresh memory for each would cost as much as the arithmetic,
or more."""
SPARE = 2**30
"""Bytes that the heap may keep when they are freed: all that a stage works with, until it ends (``release``). Without a
word glibc would keep next to nothing from then on, and every slice and every batch would fault its memory in again."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
STATUS = Path("/proc/self/status")


def peak() -> int:
    """The largest resident size of this process so far, in bytes."""
    # ru_maxrss begins at the parent's size on Linux, and counts bytes on macOS.
    found = _status("VmHWM")
    return found or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def now() -> int:
    """The resident size of this process, in bytes; its peak where the system does not say."""
    return _status("VmRSS") or peak()


def _status(field: str) -> int | None:
    if not STATUS.is_file():
        return None
    line = next((line for line in STATUS.read_text().splitlines() if line.startswith(field)), None)
    return int(line.split()[1]) * 1024 if line else None


def settle() -> None:
    """Keep large arrays out of the heap, where each would leave a hole that the next does not fit. glibc alone."""
    _call("mallopt", M_MMAP_THRESHOLD, LARGE)
    _call("mallopt", M_TRIM_THRESHOLD, SPARE)


def release() -> None:
    """Hand memory that was freed back to the system. glibc alone."""
    _call("malloc_trim", 0)


@contextmanager
def quick_collections() -> Iterator[None]:
    """Meanwhile the garbage collector leaves alone what there was before: frameworks are hundreds of thousands of
    objects, which it would look through each time."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _call(name: str, *arguments: Any) -> None:
    function = getattr(ctypes.CDLL(None), name, None)
    if function is not None:
        function(*arguments)
