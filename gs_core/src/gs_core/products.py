"""Matrix products that need not be exact. Three digits are enough to tell which of some candidates is best, and for
feedback that is rounded anyway; many devices multiply so at twice the speed."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from gs_core.arrays import Array, astype

_DTYPE: ContextVar[str | None] = ContextVar("rough", default=None)


@contextmanager
def rough_products(dtype: str | None) -> Iterator[None]:
    """For a while, ``rough`` gives this dtype; ``None``: it leaves everything as it is. An adapter's to enter, who
    knows what its device is fast at (``Model.settings``)."""
    token = _DTYPE.set(dtype)
    try:
        yield
    finally:
        _DTYPE.reset(token)


def rough(x: Array) -> Array:
    """``x`` as an operand of a product that only has to be roughly right. The product then has this dtype, too; what
    it is added to should be float32."""
    dtype = _DTYPE.get()
    return x if dtype is None else astype(x, dtype)
