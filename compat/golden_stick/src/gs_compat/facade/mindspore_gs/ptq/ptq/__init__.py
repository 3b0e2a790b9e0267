"""Where scripts look for ``PTQ``, too."""

from gs_compat.ptq import PTQ

__all__ = ["PTQ"]
