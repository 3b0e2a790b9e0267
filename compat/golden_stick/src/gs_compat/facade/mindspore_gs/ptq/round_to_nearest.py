"""Where scripts look for ``RoundToNearest``, too."""

from gs_compat.ptq import RoundToNearest

__all__ = ["RoundToNearest"]
