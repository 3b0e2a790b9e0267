"""Number formats as arithmetic: ranges, codes, and back. Written over the array API, once for all frameworks."""

from gs_core.numerics.activations import fake_quantize
from gs_core.numerics.caches import cache_objection, cache_params, fake_quantize_cache
from gs_core.numerics.groups import join, objection, panels, slices, split
from gs_core.numerics.integer import (
    code_dtype,
    decode,
    dequantize,
    encode,
    nearest_codes,
    quantize_with,
    rounded,
    scale_dtype,
    scale_from_range,
    stored_bits,
)
from gs_core.numerics.mse import mse_fraction
from gs_core.numerics.observers import minmax, quantize_weight, weight_params

__all__ = [
    "cache_objection",
    "cache_params",
    "code_dtype",
    "decode",
    "dequantize",
    "encode",
    "fake_quantize",
    "fake_quantize_cache",
    "join",
    "minmax",
    "mse_fraction",
    "nearest_codes",
    "objection",
    "panels",
    "quantize_weight",
    "quantize_with",
    "rounded",
    "scale_dtype",
    "scale_from_range",
    "slices",
    "split",
    "stored_bits",
    "weight_params",
]
