"""What speaks for a network."""

from gs_compat.helpers import NetworkHelper

__all__ = ["NetworkHelper"]
