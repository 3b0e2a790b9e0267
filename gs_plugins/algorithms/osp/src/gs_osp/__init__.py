"""Outlier Suppression+: centre every channel, then bring only the channels that stand out down to a common size.

Wei et al., "Outlier Suppression+: Accurate quantization of large language models by equivalent and optimal shifting
and scaling", https://arxiv.org/abs/2304.09145.
"""

from gs_osp.plugin import OutlierSuppressionPlus

__all__ = ["OutlierSuppressionPlus"]
