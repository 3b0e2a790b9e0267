"""GPTQ: round one input feature after another, and let the ones still to come make up for the error.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
https://arxiv.org/abs/2210.17323.
"""

from gs_gptq.hessian import Factors, Hessian, factor
from gs_gptq.plugin import GPTQ, Options
from gs_gptq.solver import solve

__all__ = ["GPTQ", "Factors", "Hessian", "Options", "factor", "solve"]
