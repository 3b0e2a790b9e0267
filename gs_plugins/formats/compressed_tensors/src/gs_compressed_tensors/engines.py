"""The engines that open a folder: ``docs/engines.md``, for transformers 5.23, compressed-tensors 0.20 and vLLM 0.32."""

from collections.abc import Mapping

from gs_compressed_tensors.config import PACKED, layout
from gs_core.engines import is_expert
from gs_core.interfaces import Engine
from gs_schemas import QuantizationArgs, QuantizationScheme

TRANSFORMERS, VLLM = "transformers with compressed-tensors", "vLLM"
Schemes = Mapping[str, QuantizationScheme]
"""Scheme of every quantized layer and cache, by its name."""


def engines(schemes: Schemes, online: bool) -> list[Engine]:
    """Both engines, and whether each opens the folder. online: True if the folder has transforms at run time."""
    if online:
        return [Engine(name, False, "the folder has transforms at run time") for name in (TRANSFORMERS, VLLM)]
    return [_transformers(schemes), _vllm(schemes)]


def dequantizes(schemes: Schemes) -> bool:
    """True if transformers has to dequantize the weights when it loads them.

    compressed-tensors 0.20 builds a packed layer with unpacked zero points on the meta device. The packed zero points
    of a checkpoint do not fit into it. Dequantizing avoids that layer. But it applies one scheme to all layers and does
    not quantize caches, so it is correct only if all layers share one scheme and no cache is quantized.
    """
    distinct = {scheme.model_copy(update={"name": None}) for scheme in schemes.values()}
    return len(distinct) == 1 and _packs_zero_points(distinct.pop()) and not any(map(is_expert, schemes))


def _packs_zero_points(scheme: QuantizationScheme) -> bool:
    return scheme.weights is not None and layout(scheme) == PACKED and not scheme.weights.symmetric


def _transformers(schemes: Schemes) -> Engine:
    if dequantizes(schemes):
        return Engine(TRANSFORMERS, note="it dequantizes the weights when it loads them")
    if any(map(_packs_zero_points, schemes.values())):
        why = "it loads packed zero points only if all layers share one scheme, without experts or quantized caches"
        return Engine(TRANSFORMERS, False, why)
    return Engine(TRANSFORMERS)


def _vllm(schemes: Schemes) -> Engine:
    reasons = {why for scheme in schemes.values() if (why := _no_kernel(scheme))}
    if reasons:
        return Engine(VLLM, False, " and ".join(sorted(reasons)))
    wide = any(scheme.inputs is None and scheme.weights and scheme.weights.bits == 8 for scheme in schemes.values())
    return Engine(VLLM, note="not on CPUs, without a kernel for W8A16" if wide else "")


def _no_kernel(scheme: QuantizationScheme) -> str | None:
    weights, inputs, cache = scheme.weights, scheme.inputs, scheme.kv_cache
    if cache is not None and cache.format != "fp8_e4m3":
        return f"it has no {cache.format} KV caches, only fp8_e4m3"
    if weights is None:
        return None
    if inputs is None:
        return None if weights.bits in (4, 8) else f"it has no kernel for {weights.format} weights"
    return None if weights.bits == inputs.bits == 8 else f"it has no kernel for {_product(weights, inputs)}"


def _product(weights: QuantizationArgs, inputs: QuantizationArgs) -> str:
    return f"{weights.format} weights with {inputs.format} activations"
