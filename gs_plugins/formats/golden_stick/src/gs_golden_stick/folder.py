"""Golden Stick's ``save_quantized`` folder, as vLLM-MindSpore and MindFormers read it (quantization: golden-stick).

Names are the checkpoint's own. Layouts: facts of mindspore_gs 1.4.1 and of the loaders of vllm-mindspore (0.5) and
mindformers (2.1).
"""

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from gs_core import Array, CacheInfo, QuantizationArgs, QuantizationScheme, QuantizedTensor, StaticInput
from gs_core.arrays import astype, to_numpy
from gs_core.interfaces import Engine
from gs_golden_stick import int4
from gs_golden_stick.described import Described
from gs_golden_stick.labels import label
from gs_golden_stick.parameters import (
    deq_scale,
    input_offset,
    input_scale,
    oriented,
    quant_bias,
    scale_dtype,
    weight_offset,
)


class GoldenStick(Described):
    """``weight`` with ``weight_scale``, or for static activations with ``deq_scale``, ``quant_bias`` and an
    ``input_scale`` and ``input_offset`` for each input feature."""

    quant_method = "golden-stick"
    labels = ("W8A16", "W4A16", "W8A8", "W8A8_DYNAMIC")
    holds_online = frozenset({"scale"})

    def engines(self, schemes: Mapping[str, QuantizationScheme], online: bool) -> Sequence[Engine]:
        held = {label(scheme) for scheme in schemes.values()}
        dynamic, static = held - {"W8A8", "W8A8_DYNAMIC"}, held - {"W8A8"}
        return [
            Engine("MindFormers", not dynamic, _no_loader(dynamic) or "tried with Qwen3"),
            Engine("vLLM-MindSpore", not static, _no_loader(static)),
        ]

    def unsupported_cache(self, cache: CacheInfo, args: QuantizationArgs) -> str | None:
        return "engines that read this folder know no quantized cache; use the format golden_stick_network or ascend"

    def unsupported_online(self, kind: str, scheme: QuantizationScheme) -> str | None:
        if kind == "scale" and label(scheme) != "W8A8":
            return f"engines divide the activations of a W8A8 layer alone, not of {label(scheme)}"
        return super().unsupported_online(kind, scheme)

    def parameters(
        self, tensor: QuantizedTensor, inputs: StaticInput | None, label: str, divisor: Array | None = None
    ) -> dict[str, Array]:
        codes, granularity = to_numpy(tensor.codes), tensor.args.granularity
        weight = int4.pack(codes) if tensor.args.bits == 4 else codes
        if inputs is not None:
            columns = codes.shape[1]
            return {
                "weight": weight,
                "deq_scale": deq_scale(tensor, inputs),
                "quant_bias": quant_bias(tensor, inputs),
                "input_scale": input_scale(inputs, columns, divisor),
                "input_offset": np.full(columns, input_offset(inputs), np.int8),
            }
        scale = oriented(to_numpy(tensor.scale), granularity)
        if label.endswith("_DYNAMIC"):
            scale = astype(scale, scale_dtype(scale))
        return {"weight": weight, "weight_scale": scale, "weight_offset": oriented(weight_offset(tensor), granularity)}


def _no_loader(labels: Collection[str]) -> str:
    return f"it does not load {', '.join(sorted(labels))}" if labels else ""
