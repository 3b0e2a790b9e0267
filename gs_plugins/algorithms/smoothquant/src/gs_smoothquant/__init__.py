"""SmoothQuant: move the difficulty of outlier channels from activations into weights.

Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models",
https://arxiv.org/abs/2211.10438, equation 4: ``s_j = max|X_j|^alpha / max|W_j|^(1 - alpha)``.
"""

from gs_smoothquant.plugin import Options, SmoothQuant

__all__ = ["Options", "SmoothQuant"]
