"""The cell that takes a linear cell's place. Its parts are nested as their parameters are named."""

from typing import Any

import mindspore as ms
from mindspore import Parameter, nn
from mindspore.common.initializer import initializer

from gs_mindformers.cells.products import products
from gs_mindformers.cells.spec import Spec


def _new(shape: tuple[int, ...], dtype: Any, fill: str = "ones") -> Parameter:
    return Parameter(initializer(fill, shape, dtype), requires_grad=False)


class QuantizedLinear(nn.Cell):
    """``x (..., in)`` to ``(..., out)`` in the dtype of ``x``. Its parameters are ones and zeros until they are loaded.

    rows, columns: of the weight. transposed: whether int8 codes lie ``(in, out)``, as the weight of the layer that it
    replaces did; int4 ones always do. dtype: what the layer computes in (on a CPU, bfloat16 is computed in float32).
    bias: that of the layer it replaces, or None. activation: what is applied to the result, or None.
    """

    def __init__(
        self,
        spec: Spec,
        rows: int,
        columns: int,
        dtype: Any,
        bias: Parameter | None = None,
        activation: Any = None,
        transposed: bool = False,
    ):
        super().__init__()
        self.spec, self.rows, self.columns, self.activation = spec, rows, columns, activation
        on_cpu = ms.get_context("device_target") == "CPU"
        self.dtype = ms.float32 if on_cpu and dtype == ms.bfloat16 else dtype
        size = columns // spec.groups if spec.groups is not None and spec.groups > 1 else 0
        self.products = products()(spec.bits, size, self.dtype, by_rows=spec.bits == 8 and not transposed)
        lying = (columns, rows) if transposed else (rows, columns)
        weight = _new((columns, rows // 2), ms.qint4x2) if spec.bits == 4 else _new(lying, ms.int8)
        self._layer = _Layer(weight, bias, _Numbers(spec, rows, columns, dtype))
        self.quant_op = _Quantizer(spec, columns, dtype) if spec.inputs == "static" else None

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        flat = x.reshape(-1, self.columns).astype(self.dtype)
        product = self._product(flat)
        if self._layer.bias is not None:
            product = product + self._layer.bias.astype(self.dtype)
        if self.activation is not None:
            product = self.activation(product)
        return product.astype(x.dtype).reshape((*x.shape[:-1], self.rows))

    def _product(self, x: ms.Tensor) -> ms.Tensor:
        weight, numbers = self._layer.weight, self._layer.matmul
        if self.quant_op is not None:
            codes = self.products.quantize(x, self.quant_op.input_scale, self.quant_op.input_zp)
            return self.products.static(codes, weight, numbers.dequant_scale, numbers.quant_bias)
        smooth, scale = numbers.smooth_scale, self._scales(numbers.weight_scale)
        if self.spec.inputs == "dynamic":
            codes, tokens = self.products.quantize_tokens(x, smooth)
            return self.products.dynamic(codes, weight, scale, tokens)
        x = x if smooth is None else x * smooth.astype(self.dtype)
        return self.products.weight_only(x, weight, scale, self._scales(numbers.weight_zp))

    @staticmethod
    def _scales(values: ms.Tensor) -> ms.Tensor:
        """A single group is no group to the operators, which take scales per channel for it."""
        return values.reshape(-1) if values.ndim == 2 and values.shape[0] == 1 else values

    def extend_repr(self) -> str:
        return f"in={self.columns}, out={self.rows}, {self.spec}"


class _Layer(nn.Cell):
    def __init__(self, weight: Parameter, bias: Parameter | None, numbers: nn.Cell):
        super().__init__()
        self.weight, self.bias, self.matmul = weight, bias, numbers


class _Numbers(nn.Cell):
    def __init__(self, spec: Spec, rows: int, columns: int, dtype: Any):
        super().__init__()
        self.smooth_scale = _new((columns,), dtype) if spec.smooth else None
        if spec.inputs == "static":
            self.quant_bias = _new((rows,), ms.int32, "zeros")
            self.dequant_scale = _new((rows,), ms.float32 if dtype == ms.bfloat16 else ms.int64)
        elif spec.inputs == "dynamic":
            self.weight_scale = _new(spec.scales(rows), ms.bfloat16 if dtype == ms.bfloat16 else ms.float32)
        else:
            self.weight_scale = _new(spec.scales(rows), dtype)
            self.weight_zp = _new(spec.scales(rows), dtype, "zeros")


class _Quantizer(nn.Cell):
    def __init__(self, spec: Spec, columns: int, dtype: Any):
        super().__init__()
        shape = (columns,) if spec.each_feature else (1,)
        self.input_scale = _new(shape, dtype)
        self.input_zp = _new(shape, ms.int8 if spec.each_feature else dtype, "zeros")
