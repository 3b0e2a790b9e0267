"""The parameters of a MindFormers network that Golden Stick quantized, as ``mindspore.save_checkpoint`` writes them.

Names are the network's own with ``_layer`` and ``quant_op`` put in by Golden Stick's cells; shapes and dtypes are
those that its DEPLOY mode gives the network, so ``mindspore.load_param_into_net`` takes the files. Layouts: facts of
mindspore_gs 1.4.1.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from gs_core import (
    Array,
    CacheInfo,
    CacheNumbers,
    LayerInfo,
    LinearMap,
    QuantizationArgs,
    QuantizationScheme,
    QuantizedTensor,
    StaticInput,
    hookimpl,
)
from gs_core.arrays import astype, dtype_name, to_numpy
from gs_core.interfaces import Engine
from gs_core.storage import Tensor, write_ckpt
from gs_golden_stick import caches, int4
from gs_golden_stick.described import Described
from gs_golden_stick.parameters import (
    deq_scale,
    float_bits,
    input_offset,
    input_scale,
    oriented,
    quant_bias,
    reciprocal,
    scale_dtype,
    smooth_scale,
    weight_offset,
)

Suppression = Literal["none", "smooth", "awq"]


class GoldenStickNetwork(Described):
    """``._layer.weight``, ``._layer.matmul.weight_scale``, ``.quant_op.input_scale`` … in safetensors.

    suppression: what the network's ``PTQConfig`` has as ``outliers_suppression``, which decides what parameters there
    are. By default static activations have a scale for each input feature (``smooth``), as every later loader of
    Golden Stick's files wants it, and other layers a ``smooth_scale`` only where they divide their input.
    """

    quant_method = "golden-stick"
    labels = ("W8A16", "W4A16", "W8A8", "W8A8_DYNAMIC", "W4A8_DYNAMIC")
    holds_online = frozenset({"scale"})
    readers = (Engine("networks that mindspore_gs 1.4.1 deployed"),)

    def __init__(self, suppression: Suppression | None = None):
        self.suppression = suppression

    @hookimpl
    def pack(  # type: ignore[override] # of a hook's arguments each takes what it needs
        self,
        tensor: QuantizedTensor,
        inputs: StaticInput | None,
        layout: str,
        online: LinearMap | None,
        layer: LayerInfo,
    ) -> dict[str, Array]:
        """int8 weights lie as the network's own cell kept them; int4 ones are ``(in, out / 2)`` in every cell."""
        arrays = dict(super().pack(tensor, inputs, layout, online))
        if layer.transposed and tensor.args.bits == 8:
            arrays["_layer.weight"] = np.ascontiguousarray(to_numpy(arrays["_layer.weight"]).T)
        return arrays

    def parameters(
        self, tensor: QuantizedTensor, inputs: StaticInput | None, label: str, divisor: Array | None = None
    ) -> dict[str, Array]:
        codes, granularity = to_numpy(tensor.codes), tensor.args.granularity
        arrays: dict[str, Array] = {"_layer.weight": int4.pack(codes) if tensor.args.bits == 4 else codes}
        if inputs is not None:
            return arrays | self._static(tensor, inputs, divisor)
        scale = oriented(to_numpy(tensor.scale), granularity)
        if label.endswith("_DYNAMIC"):
            arrays["_layer.matmul.weight_scale"] = astype(scale, scale_dtype(scale))
        else:
            arrays["_layer.matmul.weight_scale"] = scale
            # The kernel adds it.
            arrays["_layer.matmul.weight_zp"] = (-oriented(weight_offset(tensor), granularity)).astype(scale.dtype)
        if divisor is not None or self.suppression in ("smooth", "awq"):
            arrays["_layer.matmul.smooth_scale"] = smooth_scale(divisor, codes.shape[1], to_numpy(tensor.scale).dtype)
        return arrays

    def unsupported_online(self, kind: str, scheme: QuantizationScheme) -> str | None:
        if self.suppression == "none":
            return "a network deployed without outliers_suppression divides no activations"
        return super().unsupported_online(kind, scheme)

    def _static(self, tensor: QuantizedTensor, inputs: StaticInput, divisor: Array | None) -> dict[str, Array]:
        joint, columns = deq_scale(tensor, inputs), tensor.shape[1]
        arrays = {
            "_layer.matmul.quant_bias": quant_bias(tensor, inputs),
            "_layer.matmul.dequant_scale": joint if dtype_name(tensor.scale) == "bfloat16" else float_bits(joint),
        }
        if self.suppression == "none":  # this cell multiplies by the scale
            arrays["quant_op.input_scale"] = reciprocal(inputs)
            arrays["quant_op.input_zp"] = np.array([input_offset(inputs)]).astype(arrays["quant_op.input_scale"].dtype)
        else:
            arrays["quant_op.input_scale"] = input_scale(inputs, columns, divisor)
            arrays["quant_op.input_zp"] = np.full(columns, input_offset(inputs), np.int8)
        return arrays

    def unsupported_cache(self, cache: CacheInfo, args: QuantizationArgs) -> str | None:
        return caches.unsupported(cache, args)

    def pack_cache(self, cache: CacheInfo, numbers: CacheNumbers) -> dict[str, Array]:
        return caches.network(cache, numbers)

    def arrange(self, tensors: Sequence[tuple[str, Tensor]]) -> Iterable[tuple[str, Tensor]]:
        """A quantized layer's bias moves into the cell that wraps it."""
        marker = "._layer.weight"
        quantized = {name.removesuffix(marker) for name, _ in tensors if name.endswith(marker)}
        for name, tensor in tensors:
            layer, _, suffix = name.rpartition(".")
            yield (f"{layer}._layer.bias" if suffix == "bias" and layer in quantized else name), tensor


class GoldenStickCkpt(GoldenStickNetwork):
    """The same in MindSpore's ``.ckpt``. Its files, put one behind the other, are one file."""

    shard = "quant-model-{:05d}-of-{:05d}.ckpt"
    index = None

    def write(self, path: Path, tensors: Iterable[tuple[str, Tensor]]) -> None:
        write_ckpt(path, tensors)
