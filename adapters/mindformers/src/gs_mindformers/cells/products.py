"""The products of quantized cells, each in two forms: the fused Ascend operator, and what it computes.

``Fused`` calls operators exactly as MindSpore 2.10 declares them. ``Reference`` computes the same in operators that
every device has; int4 is unpacked by NumPy, so it runs in PyNative mode alone. Inside both: ``x (tokens, in)``,
``weight`` of int8, ``(out, in)`` where ``by_rows``, else ``(in, out)``, or ``(in, out / 2)`` of qint4x2, which never is
by rows; one product of which is ``(tokens, out)``.
"""

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import mint, ops

SMALLEST = float(np.finfo(np.float32).tiny)


def products() -> type:
    """``Fused`` on Ascend, ``Reference`` elsewhere."""
    return Fused if ms.get_context("device_target") == "Ascend" else Reference


class Fused:
    """dtype: of results. group_size: how many input features share a scale, 0 for scales per channel."""

    def __init__(self, bits: int, group_size: int, dtype: Any, by_rows: bool):
        from mindspore.ops.auto_generate import DynamicQuantExt, QuantBatchMatmul, QuantV2, WeightQuantBatchMatmul

        self.bits, self.dtype = bits, dtype
        self._quantize = QuantV2()
        self._quantize_tokens = DynamicQuantExt()
        self._int8 = QuantBatchMatmul(transpose_x1=False, transpose_x2=by_rows, dtype=dtype)
        self._weight_only = WeightQuantBatchMatmul(
            transpose_x=False, transpose_weight=by_rows, antiquant_group_size=group_size
        )

    def weight_only(self, x: ms.Tensor, weight: ms.Tensor, scale: ms.Tensor, zero: ms.Tensor | None) -> ms.Tensor:
        """``x @ ((weight + zero) * scale)``."""
        return self._weight_only(x, weight, scale.astype(x.dtype), zero, None, None, None)

    def quantize(self, x: ms.Tensor, scale: ms.Tensor, zero: ms.Tensor) -> ms.Tensor:
        """int8 of ``x / scale + zero``, or, for a floating-point zero point, of ``x * scale + zero``."""
        return self._quantize(x, scale, zero, False, "ROUND", ms.int8)

    def static(self, x: ms.Tensor, weight: ms.Tensor, scale: ms.Tensor, bias: ms.Tensor) -> ms.Tensor:
        """``(x @ weight.T + bias) * scale`` of int8; ``scale`` float32, or int64 that holds its bits."""
        return self._int8(x, weight, scale, None, bias, None)

    def quantize_tokens(self, x: ms.Tensor, smooth: ms.Tensor | None) -> tuple[ms.Tensor, ms.Tensor]:
        """int8 of ``x * smooth``, each token by its own scale, and the scales, float32 ``(tokens,)``."""
        return self._quantize_tokens(x, smooth)

    def dynamic(self, x: ms.Tensor, weight: ms.Tensor, scale: ms.Tensor, tokens: ms.Tensor) -> ms.Tensor:
        """``x @ weight.T * scale * tokens`` of int8 ``x``."""
        if self.bits == 8:
            return self._int8(x, weight, scale, None, None, tokens)
        product = self.weight_only(x.astype(self.dtype), weight, scale, None)
        return product * tokens.unsqueeze(1).astype(self.dtype)


class Reference:
    """See ``Fused``; sums in int32 and float32."""

    def __init__(self, bits: int, group_size: int, dtype: Any, by_rows: bool):
        self.bits, self.group_size, self.dtype, self.by_rows = bits, group_size, dtype, by_rows
        self._by_rows = ops.MatMul(transpose_b=True)

    def weight_only(self, x: ms.Tensor, weight: ms.Tensor, scale: ms.Tensor, zero: ms.Tensor | None) -> ms.Tensor:
        codes = self._codes(weight)
        scale, zero = self._spread(scale, codes), None if zero is None else self._spread(zero, codes)
        values = (codes.astype(ms.float32) if zero is None else codes.astype(ms.float32) + zero) * scale
        return self._by_rows(x.astype(ms.float32), values).astype(self.dtype)

    def quantize(self, x: ms.Tensor, scale: ms.Tensor, zero: ms.Tensor) -> ms.Tensor:
        x, divides = x.astype(ms.float32), zero.dtype == ms.int8
        scale, zero = scale.astype(ms.float32), zero.astype(ms.float32)
        return self._int8((x / scale if divides else x * scale) + zero)

    def static(self, x: ms.Tensor, weight: ms.Tensor, scale: ms.Tensor, bias: ms.Tensor) -> ms.Tensor:
        total = self._by_rows(x.astype(ms.int32), self._codes(weight).astype(ms.int32)) + bias
        return (total.astype(ms.float32) * self._from_bits(scale)).astype(self.dtype)

    def quantize_tokens(self, x: ms.Tensor, smooth: ms.Tensor | None) -> tuple[ms.Tensor, ms.Tensor]:
        x = x.astype(ms.float32) if smooth is None else x.astype(ms.float32) * smooth.astype(ms.float32)
        scale = ops.clamp(mint.max(mint.abs(x), dim=-1)[0] / 127.0, min=SMALLEST)
        return self._int8(x / scale.unsqueeze(1)), scale

    def dynamic(self, x: ms.Tensor, weight: ms.Tensor, scale: ms.Tensor, tokens: ms.Tensor) -> ms.Tensor:
        if self.bits == 8:
            total = self._by_rows(x.astype(ms.int32), self._codes(weight).astype(ms.int32)).astype(ms.float32)
            return (total * scale.astype(ms.float32) * tokens.unsqueeze(1)).astype(self.dtype)
        product = self.weight_only(x, weight, scale, None)
        return product * tokens.unsqueeze(1).astype(self.dtype)

    def _codes(self, weight: ms.Tensor) -> ms.Tensor:
        """``(out, in)`` int8."""
        if self.bits == 8:
            return weight if self.by_rows else weight.T
        packed = weight.asnumpy().view(np.int8)
        low, high = packed << 4 >> 4, packed >> 4  # arithmetic shifts carry the sign
        return ms.Tensor(np.stack([low, high], axis=-1).reshape(len(packed), -1).T.copy())

    def _spread(self, values: ms.Tensor, codes: ms.Tensor) -> ms.Tensor:
        """Scales ``(out,)`` or ``(groups, out)`` for every code, or as they broadcast to that."""
        values = values.astype(ms.float32)
        if values.ndim == 1:
            return values.reshape(-1, 1)
        return ops.repeat_interleave(values.T, codes.shape[1] // values.shape[0], axis=1)

    @staticmethod
    def _int8(x: ms.Tensor) -> ms.Tensor:
        return ops.clamp(ops.round(x), min=-128.0, max=127.0).astype(ms.int8)

    @staticmethod
    def _from_bits(scale: ms.Tensor) -> ms.Tensor:
        if scale.dtype != ms.int64:
            return scale.astype(ms.float32)
        return ms.Tensor((scale.asnumpy() & 0xFFFFFFFF).astype(np.uint32).view(np.float32))
