"""Golden Stick: one call turns a large language model into a smaller one that a serving engine loads.

>>> from gs_core import quantize
>>> quantize("Qwen3-8B", "w8a8-smoothquant", output="Qwen3-8B-W8A8", calibration="text.txt")  # doctest: +SKIP

Each name is imported when it is first asked for, so that ``gsq --help`` waits for no library.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gs_core.api import plan, quantize
    from gs_core.arrays import Array, namespace
    from gs_core.divergence import BlockComparison, Comparison, compare
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
        Allocator,
        Block,
        CacheInfo,
        CacheNumbers,
        ChannelScale,
        CheckpointFormat,
        Choice,
        Data,
        Finished,
        Fold,
        FoldTransform,
        Kernel,
        Layer,
        LayerInfo,
        Model,
        Needs,
        Output,
        Request,
        Site,
        SiteTransform,
        StaticInput,
    )
    from gs_core.linear_map import LinearMap
    from gs_core.quantized import QuantizedTensor
    from gs_schemas import QuantizationArgs, QuantizationScheme, Recipe, Strict

__all__ = [
    "Accumulator",
    "Adapter",
    "Algorithm",
    "Allocator",
    "Array",
    "Block",
    "BlockComparison",
    "CacheInfo",
    "CacheNumbers",
    "CalibrationError",
    "ChannelScale",
    "CheckpointError",
    "CheckpointFormat",
    "Choice",
    "Comparison",
    "Data",
    "Evaluation",
    "Finished",
    "Fold",
    "FoldTransform",
    "GoldenStickError",
    "Kernel",
    "Layer",
    "LayerInfo",
    "LinearMap",
    "Model",
    "Needs",
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
    "SiteTransform",
    "StaticInput",
    "Strict",
    "compare",
    "evaluate",
    "hookimpl",
    "namespace",
    "plan",
    "quantize",
]

_HOMES = {
    "gs_schemas": ("QuantizationArgs", "QuantizationScheme", "Recipe", "Strict"),
    "gs_core.api": ("plan", "quantize"),
    "gs_core.arrays": ("Array", "namespace"),
    "gs_core.divergence": ("BlockComparison", "Comparison", "compare"),
    "gs_core.evaluation": ("Evaluation", "evaluate"),
    "gs_core.hookspecs": ("hookimpl",),
    "gs_core.linear_map": ("LinearMap",),
    "gs_core.quantized": ("QuantizedTensor",),
    "gs_core.errors": tuple(name for name in __all__ if name.endswith("Error")),
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'gs_core' has no attribute '{name}'")
    home = next((home for home, names in _HOMES.items() if name in names), "gs_core.interfaces")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
