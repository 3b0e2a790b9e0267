"""What this process holds, and giving it back."""

import ctypes
import resource
from typing import Any

LARGE = 8 * 2**20
"""Arrays of this many bytes get memory of their own, which returns to the system with them. The slices that numerics
work on are smaller: fresh memory for each would cost more than the arithmetic."""
M_MMAP_THRESHOLD = -3  # malloc.h


def peak() -> int:
    """The largest resident size of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def settle() -> None:
    """Keep large arrays out of the heap, where each would leave a hole that the next does not fit. glibc alone."""
    _call("mallopt", M_MMAP_THRESHOLD, LARGE)


def release() -> None:
    """Hand memory that was freed back to the system. glibc alone."""
    _call("malloc_trim", 0)


def _call(name: str, *arguments: Any) -> None:
    function = getattr(ctypes.CDLL(None), name, None)
    if function is not None:
        function(*arguments)
