"""AWQ: protect the weights that meet large activations by scaling their channels up before rounding.

Lin et al., "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration",
https://arxiv.org/abs/2306.00978.
"""

from gs_awq.moments import Moments
from gs_awq.plugin import AWQ, Options

__all__ = ["AWQ", "Moments", "Options"]
