"""Where scripts look for ``logger``, too."""

from gs_compat.log import logger

__all__ = ["logger"]
