"""Hadamard rotations: outliers are spread over all the channels of a token before it is quantized.

Ashkboos et al., "QuaRot: Outlier-Free 4-Bit Inference in Rotated LLMs", https://arxiv.org/abs/2404.00456; the names
R1 to R4 are those of Liu et al., "SpinQuant", https://arxiv.org/abs/2405.16406, figure 1.
"""

from gs_hadamard.plugin import Hadamard

__all__ = ["Hadamard"]
