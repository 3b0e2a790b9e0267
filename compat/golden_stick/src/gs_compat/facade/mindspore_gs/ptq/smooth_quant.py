"""``SmoothQuant`` of older scripts."""

from gs_compat.ptq import SmoothQuant

__all__ = ["SmoothQuant"]
