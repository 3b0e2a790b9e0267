"""AutoRound: learn, block by block, which way each weight is rounded and how far each scale reaches.

Cheng et al., "Optimize Weight Rounding via Signed Gradient Descent for the Quantization of LLMs",
https://arxiv.org/abs/2309.05516 (SignRound).
"""

from gs_autoround.plugin import AutoRound, Options

__all__ = ["AutoRound", "Options"]
