"""msModelSlim's folder, as vLLM-Ascend and vLLM-MindSpore (both ``--quantization ascend``) read it.

Layout: exports of msModelSlim 26.1, and the loaders of vllm-ascend 0.23. There a layer's bias is part of
``quant_bias``, since the static product adds no other.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from gs_core import (
    Array,
    CacheInfo,
    CacheNumbers,
    Finished,
    LayerInfo,
    LinearMap,
    QuantizationArgs,
    QuantizationScheme,
    QuantizedTensor,
    StaticInput,
    hookimpl,
)
from gs_core.arrays import RawTensor, astype, dtype_name, from_raw, to_numpy, to_raw
from gs_core.errors import CheckpointError
from gs_core.interfaces import Engine
from gs_core.storage import DerivedTensor, StoredTensor, Tensor
from gs_golden_stick import caches, flatquant
from gs_golden_stick.described import Described
from gs_golden_stick.labels import DESCRIPTIONS, label
from gs_golden_stick.parameters import deq_scale, float_bits, from_float_bits, input_offset, quant_bias, weight_offset


class Ascend(Described):
    """``weight`` with ``weight_scale`` and ``weight_offset`` of ``(out, 1)``, or for static activations with
    ``deq_scale``, ``quant_bias`` and one ``input_scale`` and ``input_offset``. Scales are float32, of values that
    the model's dtype holds: loaders round them to it. A layer whose input goes through a Kronecker pair has
    that beside them (``gs_golden_stick.flatquant``)."""

    quant_method = "ascend"
    labels = ("W8A16", "W8A8", "W8A8_DYNAMIC", "W4A4_DYNAMIC")
    description = DESCRIPTIONS[1]
    shard = "quant_model_weights-{:05d}-of-{:05d}.safetensors"
    index = "quant_model_weights.safetensors.index.json"
    framework = "pt"
    packs_int4 = False
    readers = (Engine("vLLM-Ascend", note="from its source code; not run"),)
    holds_online = frozenset({"kronecker", "clipped"})

    def unsupported(self, layer: LayerInfo, scheme: QuantizationScheme) -> str | None:
        why = super().unsupported(layer, scheme)
        if why is None and scheme.weights is not None:
            if scheme.weights.granularity != "channel":
                return f"{label(scheme)} has scales per channel here, not per {scheme.weights.granularity}"
            if not scheme.weights.symmetric:  # vLLM-Ascend adds the offset that it should subtract
                return "vLLM-Ascend computes W8A16 right for symmetric weights alone"
        return why

    def unsupported_online(self, kind: str, scheme: QuantizationScheme) -> str | None:
        if kind in self.holds_online and label(scheme) != "W4A4_DYNAMIC":
            return f"vLLM-Ascend maps the activations of a W4A4_DYNAMIC layer alone, not of {label(scheme)}"
        return super().unsupported_online(kind, scheme)

    def unsupported_map(self, map: LinearMap, layer: LayerInfo, scheme: QuantizationScheme) -> str | None:
        return self.unsupported_online(map.kind, scheme) or flatquant.unsupported(map, layer)

    @hookimpl
    def pack(
        self, tensor: QuantizedTensor, inputs: StaticInput | None, layout: str, online: LinearMap | None
    ) -> dict[str, Array]:
        return self.parameters(tensor, inputs, layout) | ({} if online is None else flatquant.pack(online))

    def parameters(
        self, tensor: QuantizedTensor, inputs: StaticInput | None, label: str, divisor: Array | None = None
    ) -> dict[str, Array]:
        weight = to_numpy(tensor.codes)
        if inputs is None:
            scale = to_numpy(astype(tensor.scale, "float32"))
            return {
                "weight": weight,
                "weight_scale": scale,
                "weight_offset": weight_offset(tensor).astype(np.float32),
            }
        scale = deq_scale(tensor, inputs)
        return {
            "weight": weight,
            "deq_scale": float_bits(scale) if dtype_name(tensor.scale) == "float16" else scale,
            "quant_bias": quant_bias(tensor, inputs),
            "input_scale": to_numpy(astype(inputs.scale, "float32")).reshape(1),
            "input_offset": np.array([input_offset(inputs)], np.float32),
        }

    def unsupported_cache(self, cache: CacheInfo, args: QuantizationArgs) -> str | None:
        if not args.symmetric:  # vLLM-Ascend's decoding leaves the offset out
            return "vLLM-Ascend computes C8 right for symmetric caches alone"
        return caches.unsupported(cache, args)

    def pack_cache(self, cache: CacheInfo, numbers: CacheNumbers) -> dict[str, Array]:
        return caches.ascend(cache, numbers)

    def arrange(self, tensors: Sequence[tuple[str, Tensor]]) -> Iterable[tuple[str, Tensor]]:
        """Add each bias, in units of its row's product, to ``quant_bias``."""
        named = dict(tensors)
        for name in named:
            layer, _, suffix = name.rpartition(".")
            if suffix == "quant_bias" and f"{layer}.bias" in named:
                bias, scale = (_array(named[f"{layer}.{suffix}"]) for suffix in ("bias", "deq_scale"))
                found = _array(named[name]) + np.round(bias.astype(np.float64) / from_float_bits(scale))
                if np.abs(found).max(initial=0) >= 2**31:
                    raise CheckpointError(
                        f"{layer}: its bias is too large beside its weights for quant_bias, an int32; "
                        "give it an override with dynamic activations"
                    )
                named[name] = found.astype(np.int32)
        return named.items()

    def describe(self, final: Finished) -> dict[str, Any]:
        described = super().describe(final)
        described |= {t: flatquant.LABEL for t in described if t.rpartition(".")[0] in final.online}
        about = {
            "version": "1.0.0",
            "model_quant_type": max(set(described.values()) - {caches.LABEL}, key=_RANKS.index),
            "group_size": 0,
            "metadata": {},
            "optional": {},
        }
        if final.caches:
            about |= {"kv_cache_type": caches.LABEL, "kv_quant_type": caches.LABEL}
        return described | about


_RANKS = ("FLOAT", "W8A16", "W8A8_DYNAMIC", "W8A8", flatquant.LABEL, "W4A4_DYNAMIC")
"""Of the types in a model, the last of these is what msModelSlim calls the model's."""


def _array(tensor: Tensor) -> np.ndarray:
    if isinstance(tensor, StoredTensor | DerivedTensor):
        tensor = tensor.read()
    return from_raw(tensor if isinstance(tensor, RawTensor) else to_raw(tensor))
