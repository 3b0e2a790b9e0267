"""What scripts take from ``mindspore_gs.common``."""

from gs_compat.words import BackendTarget

from .logger import logger  # a module of the same name, which must not take its place later

__all__ = ["BackendTarget", "logger"]
