"""Which parameters a quantized cell has: Golden Stick's cells differ with what suppresses outliers.

A cell that smooths divides by an ``input_scale`` for each feature, or multiplies by a ``smooth_scale``; one that does
not multiplies by a single ``input_scale``. Scales that were folded into the layer before leave the same cell with ones.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from gs_compat.inner import InnerPTQConfig
from gs_compat.policies import Configs
from gs_compat.translate import layer_rule
from gs_compat.words import OutliersSuppressionType
from gs_core.arrays import RawTensor, from_raw
from gs_mindformers.cells import Spec, spec_of

WEIGHT, INPUT_SCALE, INPUT_ZERO = "_layer.weight", "quant_op.input_scale", "quant_op.input_zp"
WEIGHT_SCALE, SMOOTH_SCALE = "_layer.matmul.weight_scale", "_layer.matmul.smooth_scale"


def cell(config: InnerPTQConfig, columns: int) -> Spec | None:
    """The cell of a layer with so many input features; None when its weights stay in floating point."""
    rule = layer_rule(config)
    if rule is None:
        return None
    static = rule.scheme.inputs is not None and not rule.scheme.inputs.dynamic
    return spec_of(rule.scheme, columns, each_feature=_smooths(config), smooth=_smooths(config) and not static)


def as_cells_hold(tensors: Mapping[str, Any], configs: Configs, columns: Mapping[str, int]) -> dict[str, Any]:
    """The tensors of a quantized network, those of each layer as its own kind of cell holds them.

    tensors: with a static ``input_scale`` for each feature, and a ``smooth_scale`` only where one is needed. columns:
    the input features of every layer.
    """
    found = dict(tensors)
    for name, config in configs.items():
        if config is None or f"{name}.{WEIGHT}" not in tensors:
            continue
        static = f"{name}.{INPUT_SCALE}" in tensors
        if static and not _smooths(config):
            scale, zero = (_array(tensors[f"{name}.{suffix}"])[:1] for suffix in (INPUT_SCALE, INPUT_ZERO))
            found[f"{name}.{INPUT_SCALE}"] = (1 / scale.astype(np.float32)).astype(scale.dtype)
            found[f"{name}.{INPUT_ZERO}"] = zero.astype(scale.dtype)
        elif not static and _smooths(config) and f"{name}.{SMOOTH_SCALE}" not in tensors:
            found[f"{name}.{SMOOTH_SCALE}"] = np.ones(columns[name], _array(tensors[f"{name}.{WEIGHT_SCALE}"]).dtype)
    return found


def describe(spec: Spec) -> str:
    """``W8A16``, ``W8A8`` (static), ``W8A8_DYNAMIC``; with the number of groups where there are any."""
    activations = {"float": "A16", "static": "A8", "dynamic": "A8_DYNAMIC"}[spec.inputs]
    return f"W{spec.bits}{activations}" + (f" in {spec.groups} groups" if spec.groups else "")


def _smooths(config: InnerPTQConfig) -> bool:
    return config.outliers_suppression is not OutliersSuppressionType.NONE


def _array(tensor: Any) -> np.ndarray:
    return from_raw(tensor if isinstance(tensor, RawTensor) else tensor.read())
