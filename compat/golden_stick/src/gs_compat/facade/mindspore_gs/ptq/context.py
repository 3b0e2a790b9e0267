"""The configuration that ``PTQ`` keeps in ``_config``."""

from gs_compat.inner import InnerPTQConfig
from gs_compat.words import LayerQuantizeAlgo, PTQApproach

__all__ = ["InnerPTQConfig", "LayerQuantizeAlgo", "PTQApproach"]
