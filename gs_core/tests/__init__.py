"""A package, so that pytest gives these files names of their own. Without this file it would import them from a
checkout as ``gs_core.tests``, with the checkout's folder in the place of the installed package ``gs_core``."""
