"""The size of the result, computed from arrays that the checkpoint format packs."""

from functools import cache
from math import prod

import numpy as np

from gs_core import numerics
from gs_core.arrays import numpy_dtype, to_raw
from gs_core.interfaces import LayerInfo, StaticInput
from gs_core.planning.plan import Plan, static_inputs
from gs_core.quantized import QuantizedTensor
from gs_core.stages import Stages
from gs_schemas import QuantizationScheme


def planned_bytes(plan: Plan) -> int:
    """Bytes of all tensors of the result.

    The format packs a tensor of zeros for each shape and scheme. Scales of caches and maps that an engine computes at
    run time are not counted.
    """
    stages = Stages({plan.recipe.format: plan.format})

    @cache
    def packed(shape: tuple[int, int], dtype: str, transposed: bool, scheme: QuantizationScheme) -> int:
        layer = LayerInfo("layer", 0, shape, "site", dtype, transposed=transposed)
        static = StaticInput(np.ones(1, numpy_dtype(dtype)), None) if static_inputs(scheme) else None
        arrays = stages.pack(plan.recipe.format, _zeros(layer, scheme), static, plan.format.layout(scheme), None, layer)
        return sum(to_raw(array).nbytes for array in arrays.values())

    total = plan.model.nbytes()
    for row in plan.rows:
        if row.scheme is not None:
            layer = row.layer
            total -= prod(layer.shape) * numpy_dtype(layer.dtype).itemsize
            total += packed(layer.shape, layer.dtype, layer.transposed, row.scheme)
    return total


def _zeros(layer: LayerInfo, scheme: QuantizationScheme) -> QuantizedTensor:
    args = scheme.weights
    assert args is not None
    rows, columns = layer.shape
    scales = {"tensor": (1, 1), "group": (rows, columns // (args.group_size or columns))}.get(
        args.granularity, (rows, 1)
    )
    codes = np.zeros(layer.shape, np.int8 if args.number.kind == "int" else np.uint8)
    scale = np.ones(scales, numpy_dtype(numerics.scale_dtype(args, layer.dtype)))
    return QuantizedTensor(codes, scale, None if args.symmetric else np.zeros(scales, codes.dtype), args)
