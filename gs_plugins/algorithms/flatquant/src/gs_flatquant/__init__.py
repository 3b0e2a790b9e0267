"""FlatQuant: learn, block by block, invertible maps that make weights and activations flat before they are quantized.

Sun et al., "FlatQuant: Flatness Matters for LLM Quantization", https://arxiv.org/abs/2410.09426.
"""

from gs_flatquant.factors import pair
from gs_flatquant.plugin import FlatQuant, Options

__all__ = ["FlatQuant", "Options", "pair"]
