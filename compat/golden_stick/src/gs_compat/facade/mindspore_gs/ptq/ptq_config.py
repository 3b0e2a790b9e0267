"""Where scripts look for configurations, too."""

from gs_compat.algorithms import AWQConfig, GPTQQuantConfig, SmoothQuantConfig
from gs_compat.config import PTQConfig
from gs_compat.words import BackendTarget, OutliersSuppressionType, PrecisionRecovery, PTQMode, QuantGranularity

__all__ = [
    "AWQConfig",
    "BackendTarget",
    "GPTQQuantConfig",
    "OutliersSuppressionType",
    "PTQConfig",
    "PTQMode",
    "PrecisionRecovery",
    "QuantGranularity",
    "SmoothQuantConfig",
]
