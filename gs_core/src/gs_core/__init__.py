"""Golden Stick: one call turns a large language model into a smaller one that a serving engine loads.

>>> from gs_core import quantize
>>> quantize("Qwen3-8B", "w8a8-smoothquant", output="Qwen3-8B-W8A8", calibration_data="text.txt")  # doctest: +SKIP
"""

from gs_core import numerics
from gs_core.api import plan, quantize
from gs_core.arrays import Array, namespace
from gs_core.errors import (
    CalibrationError,
    CheckpointError,
    GoldenStickError,
    OutputError,
    PlanError,
    PluginError,
)
from gs_core.evaluation import Evaluation, evaluate
from gs_core.hookspecs import hookimpl
from gs_core.interfaces import (
    Accumulator,
    Adapter,
    Algorithm,
    Block,
    ChannelScale,
    CheckpointFormat,
    Finished,
    Fold,
    Kernel,
    Layer,
    LayerInfo,
    Model,
    Output,
    Request,
    Site,
    StaticInput,
)
from gs_core.quantized import QuantizedTensor
from gs_schemas import QuantizationArgs, QuantizationScheme, Recipe, Strict

__all__ = [
    "Accumulator",
    "Adapter",
    "Algorithm",
    "Array",
    "Block",
    "CalibrationError",
    "ChannelScale",
    "CheckpointError",
    "CheckpointFormat",
    "Evaluation",
    "Finished",
    "Fold",
    "GoldenStickError",
    "Kernel",
    "Layer",
    "LayerInfo",
    "Model",
    "Output",
    "OutputError",
    "PlanError",
    "PluginError",
    "QuantizationArgs",
    "QuantizationScheme",
    "QuantizedTensor",
    "Recipe",
    "Request",
    "Site",
    "StaticInput",
    "Strict",
    "evaluate",
    "hookimpl",
    "namespace",
    "numerics",
    "plan",
    "quantize",
]
