"""Quantized cells that run: on Ascend by the fused operators, elsewhere by the arithmetic that those stand for.

Parameters have the names, shapes and dtypes that Golden Stick gives a network (``._layer.weight``,
``._layer.matmul.weight_scale``, ``.quant_op.input_scale`` …), so its files and ours load with
``mindspore.load_param_into_net``, and ``mindspore.save_checkpoint`` writes such files.
"""

from gs_mindformers.cells.installing import deploy, install, refusals
from gs_mindformers.cells.spec import Spec, read_specs, spec_of

__all__ = ["Spec", "deploy", "install", "read_specs", "refusals", "spec_of"]
