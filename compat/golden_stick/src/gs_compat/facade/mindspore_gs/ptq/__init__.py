"""What scripts take from ``mindspore_gs.ptq``."""

from gs_compat.algorithms import AWQConfig, GPTQQuantConfig, SmoothQuantConfig
from gs_compat.auto import AutoQuantForCausalLM, BaseQuantForCausalLM
from gs_compat.config import PTQConfig
from gs_compat.helpers import NetworkHelper
from gs_compat.ptq import PTQ, RoundToNearest
from gs_compat.words import OutliersSuppressionType, PrecisionRecovery, PTQMode, QuantGranularity

__all__ = [
    "PTQ",
    "AWQConfig",
    "AutoQuantForCausalLM",
    "BaseQuantForCausalLM",
    "GPTQQuantConfig",
    "NetworkHelper",
    "OutliersSuppressionType",
    "PTQConfig",
    "PTQMode",
    "PrecisionRecovery",
    "QuantGranularity",
    "RoundToNearest",
    "SmoothQuantConfig",
]
