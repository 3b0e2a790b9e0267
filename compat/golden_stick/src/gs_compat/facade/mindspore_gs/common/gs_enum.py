"""Where scripts look for ``BackendTarget``, too."""

from gs_compat.words import BackendTarget

__all__ = ["BackendTarget"]
