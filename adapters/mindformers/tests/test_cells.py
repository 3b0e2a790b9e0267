"""Quantized cells: their arithmetic, the fused operators they call on Ascend, the names of their parameters."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gs_core import CheckpointError, LayerInfo, PlanError, QuantizationScheme, StaticInput, numerics, quantize
from gs_core.arrays import RawTensor, astype, to_raw
from gs_core.discovery import load
from gs_core.storage import Checkpoint
from gs_mindformers import MindFormers
from gs_schemas import Recipe

pytestmark = pytest.mark.lane

ROWS, COLUMNS, TOKENS = 32, 64, 10
INT8, INT4 = {"format": "int8"}, {"format": "int4"}
GROUPS = INT4 | {"granularity": "group", "group_size": 32}
ONE_GROUP = GROUPS | {"group_size": COLUMNS}
TOKEN = {"format": "int8", "granularity": "token", "dynamic": True}
TENSOR = {"format": "int8", "granularity": "tensor"}
SCHEMES = {
    "W8": {"weights": INT8},
    "W8 asymmetric": {"weights": INT8 | {"symmetric": False}},
    "W4": {"weights": INT4},
    "W4 groups": {"weights": GROUPS},
    "W4 groups asymmetric": {"weights": GROUPS | {"symmetric": False}},
    "W4 one group": {"weights": ONE_GROUP},
    "W4A8 dynamic": {"weights": INT4, "inputs": TOKEN},
    "W4A8 dynamic groups": {"weights": GROUPS, "inputs": TOKEN},
    "W8A8 dynamic": {"weights": INT8, "inputs": TOKEN},
    "W8A8": {"weights": INT8, "inputs": TENSOR},
    "W8A8 asymmetric": {"weights": INT8, "inputs": TENSOR | {"symmetric": False}},
}
each_scheme = pytest.mark.parametrize("name", SCHEMES)
transposed_or_not = pytest.mark.parametrize("transposed", [False, True], ids=["", "transposed"])


class Case:
    """A layer with a bias, its quantized tensor, its activations, and what it must compute in float64."""

    def __init__(self, name: str, dtype: str = "float32", transposed: bool = False):
        self.transposed = transposed
        random = np.random.default_rng(0)
        self.scheme = QuantizationScheme.model_validate(SCHEMES[name])
        assert self.scheme.weights is not None
        self.x = random.standard_normal((2, TOKENS // 2, COLUMNS)).astype(np.float32) + 0.5
        self.bias = random.standard_normal(ROWS).astype(np.float32)
        weight = random.standard_normal((ROWS, COLUMNS)).astype(np.float32)
        self.tensor = numerics.quantize_weight(weight, self.scheme.weights, dtype)
        self.static = None
        args = self.scheme.inputs
        if args is not None and not args.dynamic:
            low, high = self.x.min().reshape(1), self.x.max().reshape(1)
            self.static = StaticInput(*numerics.scale_from_range(low, high, args, dtype))

    def wanted(self) -> np.ndarray:
        x, args = self.x.reshape(-1, COLUMNS), self.scheme.inputs
        if self.static is not None:
            x = numerics.fake_quantize(x, args, self.static.scale, self.static.zero_point)
        elif args is not None:  # the operator's scale is the largest magnitude over 127, ours over 127.5
            scale = np.abs(x).max(-1, keepdims=True) / np.float32(127)
            x = np.rint(x / scale) * scale
        weight = numerics.dequantize(self.tensor).astype(np.float64)
        return (x.astype(np.float64) @ weight.T + self.bias).reshape(*self.x.shape[:-1], ROWS)

    def parameters(self, suppression: str | None = None) -> dict[str, RawTensor]:
        """As the file of a network holds them."""
        plugin = load("format", "golden_stick_network")(suppression)
        layer = LayerInfo("layer", 0, (ROWS, COLUMNS), "layer.input", "float32", transposed=self.transposed)
        given = {"tensor": self.tensor, "inputs": self.static, "layout": plugin.layout(self.scheme)}
        arrays = plugin.pack(**given, online=None, layer=layer)
        raw = {f"layer.{n}": a if isinstance(a, RawTensor) else to_raw(a) for n, a in arrays.items()}
        return raw | {"layer._layer.bias": to_raw(self.bias)}


@pytest.fixture
def one(mindspore: Any) -> Callable[..., Any]:
    """``(dtype, transposed)``: a network of one linear layer named ``layer``."""
    from mindformers.modules.layers import Linear
    from mindspore import nn

    class One(nn.Cell):
        def __init__(self, dtype: Any, transposed: bool):
            super().__init__()
            made = {"compute_dtype": dtype, "param_init_type": dtype, "transpose_b": not transposed}
            self.layer = Linear(COLUMNS, ROWS, **made)

        def construct(self, x: Any) -> Any:
            return self.layer(x)

    return lambda dtype="float32", transposed=False: One(getattr(mindspore, dtype), transposed)


@transposed_or_not
@each_scheme
def test_a_cell_computes_what_its_numbers_say(one, mindspore, name, transposed):
    from gs_mindformers import cells

    case, network = Case(name, transposed=transposed), one(transposed=transposed)
    assert cells.install(network, case.parameters()) == []
    found = network(mindspore.Tensor(case.x)).asnumpy()
    assert np.allclose(found, case.wanted(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", ["W8A8", "W8A8 asymmetric"])
def test_one_scale_that_multiplies_is_the_same_product(one, mindspore, name):
    """Golden Stick's file without suppression: the scale's reciprocal, and a zero point in floating point."""
    from gs_mindformers import cells

    case, network = Case(name), one()
    parameters = case.parameters("none")
    assert parameters["layer.quant_op.input_scale"].shape == (1,)
    cells.install(network, parameters)
    found = network(mindspore.Tensor(case.x)).asnumpy()
    # x * (1 / s) and x / s round apart now and then, by one step.
    assert np.abs(found - case.wanted()).max() < 2 * float(case.static.scale[0]) * np.abs(case.tensor.scale).max() * 127


@pytest.mark.parametrize("name", ["W4 groups", "W8", "W8A8 dynamic"])
def test_activations_are_multiplied_by_a_smooth_scale(one, mindspore, name):
    from gs_mindformers import cells

    case, network = Case(name), one()
    parameters = case.parameters("smooth")
    smooth = np.random.default_rng(1).uniform(0.5, 2, COLUMNS).astype(np.float32)
    parameters["layer._layer.matmul.smooth_scale"] = to_raw(smooth)
    cells.install(network, parameters)
    found = network(mindspore.Tensor(case.x)).asnumpy()
    case.x = case.x * smooth
    assert np.allclose(found, case.wanted(), rtol=1e-5, atol=1e-4)


# --- the fused operators, emulated --------------------------------------------------------------------------------


def emulated(real: type, compute: Callable[[dict[str, Any], dict[str, Any]], Any]) -> type:
    """An operator that is made and called only as the real one can be; ``compute(made, given)`` gives NumPy arrays."""

    class Emulated:
        calls = 0

        def __init__(self, *args: Any, **keywords: Any):
            bound = inspect.signature(real.__init__).bind(self, *args, **keywords)
            bound.apply_defaults()
            self.made = bound.arguments

        def __call__(self, *args: Any, **keywords: Any) -> Any:
            from mindspore import Tensor

            bound = inspect.signature(real.__call__).bind(self, *args, **keywords)
            bound.apply_defaults()
            type(self).calls += 1
            found = compute(self.made, bound.arguments)
            return tuple(map(Tensor, found)) if isinstance(found, tuple) else Tensor(found)

    return Emulated


def quant_v2(made: dict, given: dict) -> np.ndarray:
    """aclnnAscendQuantV2: divides when the offset is int8 (the operator of MindSpore's internal kernels)."""
    x, scale, zero = (given[n].asnumpy() for n in ("x", "scale", "offset"))
    assert (given["sqrt_mode"], given["rounding_mode"], str(given["dst_type"])) == (False, "ROUND", "Int8")
    assert scale.shape == zero.shape and scale.shape in ((1,), (x.shape[-1],))
    moved = (x / scale if zero.dtype == np.int8 else x * scale) + zero
    return np.clip(np.rint(moved), -128, 127).astype(np.int8)


def quant_batch_matmul(made: dict, given: dict) -> np.ndarray:
    x, weight, scale = (given[n].asnumpy() for n in ("x1", "x2", "scale"))
    assert x.dtype == weight.dtype == np.int8 and given["offset"] is None and not made["transpose_x1"]
    weight = weight if made["transpose_x2"] else weight.T
    total = x.astype(np.int32) @ weight.T.astype(np.int32)
    if given["bias"] is not None:
        bias = given["bias"].asnumpy()
        assert bias.dtype == np.int32
        total = total + bias
    if scale.dtype == np.int64:
        assert given["pertokenScaleOptional"] is None
        scale = scale.astype(np.uint32).view(np.float32)
    assert scale.dtype == np.float32 and scale.shape == (len(weight),)
    out = total.astype(np.float32) * scale
    if given["pertokenScaleOptional"] is not None:
        tokens = given["pertokenScaleOptional"].asnumpy()
        assert tokens.dtype == np.float32 and tokens.shape == (len(x),)
        out = out * tokens[:, None]
    return out


def weight_quant_batch_matmul(made: dict, given: dict) -> np.ndarray:
    x, scale = given["x"].asnumpy(), given["antiquant_scale"].asnumpy()
    assert scale.dtype == x.dtype and not made["transpose_x"]
    assert given["quant_scale"] is given["quant_offset"] is given["bias"] is None
    weight = given["weight"].asnumpy()
    if str(given["weight"].dtype) == "Int4":
        assert not made["transpose_weight"]
        weight = np.stack([weight << 4 >> 4, weight >> 4], -1).reshape(len(weight), -1)
    else:
        weight = weight.T if made["transpose_weight"] else weight
    zero = np.zeros_like(scale) if given["antiquant_offset"] is None else given["antiquant_offset"].asnumpy()
    assert zero.dtype == x.dtype and zero.shape == scale.shape
    size = made["antiquant_group_size"]
    assert scale.shape == ((len(weight) // size, weight.shape[1]) if size else (weight.shape[1],))
    if size:
        scale, zero = scale.repeat(size, 0), zero.repeat(size, 0)
    return x @ ((weight + zero) * scale)


def dynamic_quant(made: dict, given: dict) -> tuple[np.ndarray, np.ndarray]:
    x = given["x"].asnumpy()
    x = x if given["smooth_scales"] is None else x * given["smooth_scales"].asnumpy()
    scale = np.abs(x).max(-1) / np.float32(127)
    return np.rint(x / scale[:, None]).astype(np.int8), scale.astype(np.float32)


OPERATORS = {
    "QuantV2": quant_v2,
    "QuantBatchMatmul": quant_batch_matmul,
    "WeightQuantBatchMatmul": weight_quant_batch_matmul,
    "DynamicQuantExt": dynamic_quant,
}
CALLED = {
    "W8A8": ["QuantV2", "QuantBatchMatmul"],
    "W8A8 asymmetric": ["QuantV2", "QuantBatchMatmul"],
    "W8A8 dynamic": ["DynamicQuantExt", "QuantBatchMatmul"],
    "W4A8 dynamic": ["DynamicQuantExt", "WeightQuantBatchMatmul"],
    "W4A8 dynamic groups": ["DynamicQuantExt", "WeightQuantBatchMatmul"],
}


@transposed_or_not
@each_scheme
def test_on_ascend_the_fused_operators_are_called_as_they_are_declared(one, mindspore, monkeypatch, name, transposed):
    from mindspore.ops import auto_generate

    from gs_mindformers import cells
    from gs_mindformers.cells import linear
    from gs_mindformers.cells.products import Fused

    made = {n: emulated(getattr(auto_generate, n), compute) for n, compute in OPERATORS.items()}
    for operator, stand_in in made.items():
        monkeypatch.setattr(auto_generate, operator, stand_in)
    monkeypatch.setattr(linear, "products", lambda: Fused)
    case, network = Case(name, transposed=transposed), one(transposed=transposed)
    cells.install(network, case.parameters())
    found = network(mindspore.Tensor(case.x)).asnumpy()
    assert np.allclose(found, case.wanted(), rtol=1e-5, atol=1e-4)
    wanted = CALLED.get(name, ["WeightQuantBatchMatmul"])
    assert [n for n, stand_in in made.items() if stand_in.calls] == [n for n in OPERATORS if n in wanted]


# --- in a network -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["W4 groups", "W8A8", "W8A8 dynamic"])
def test_a_quantized_network_runs_and_loses_little(llama, mindspore, tokens, tmp_path, kind):
    from gs_mindformers import cells

    network = llama("float32", seq_length=24, qkv_has_bias=True)
    ids = mindspore.Tensor(tokens, mindspore.int32)
    before = network(ids)[0].asnumpy()
    recipe = Recipe.parse({"algorithms": ["rtn"], "scheme": SCHEMES[kind], "format": "golden_stick_network"})
    quantize(network, recipe, tmp_path, calibration=tokens, samples=4, seq_len=24, adapter=MindFormers())
    assert np.array_equal(network(ids)[0].asnumpy(), before), "quantizing left it as it was"
    assert cells.install(network, Checkpoint(tmp_path).tensors) == []
    after = network(ids)[0].asnumpy()
    assert not np.array_equal(before, after)
    assert np.corrcoef(before.ravel(), after.ravel())[0, 1] > (0.95 if kind == "W4 groups" else 0.999)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@each_scheme
def test_a_deployed_network_takes_the_file_and_nothing_is_left_over(one, mindspore, dtype, name):
    from gs_mindformers import cells
    from gs_mindformers.tensors import dtype_name

    case, network = Case(name, dtype), one(dtype)
    cells.deploy(network, {"layer": cells.spec_of(case.scheme, COLUMNS)})
    assert network.layer.spec == cells.read_specs(case.parameters())["layer"]
    file = case.parameters() | {"layer._layer.bias": to_raw(astype(case.bias, dtype))}
    wanted = {n: (t.dtype.replace("qint4x2", "int4"), t.shape) for n, t in file.items()}
    assert {n: (dtype_name(p), tuple(p.shape)) for n, p in network.parameters_dict().items()} == wanted
    assert cells.install(one(dtype), file) == []


def test_what_no_cell_computes_is_said(one):
    from gs_mindformers import cells

    network = one()
    with pytest.raises(PlanError, match=r"other: the network has no linear cell of that name"):
        cells.deploy(network, {"other": cells.Spec(8)})
    with pytest.raises(ValueError, match="int4 weights take activations quantized per token"):
        scheme = {"weights": INT4, "inputs": TENSOR}
        cells.spec_of(QuantizationScheme.model_validate(scheme), COLUMNS)


@pytest.mark.parametrize(
    ("more", "error", "said"),
    [
        ({"stranger": np.zeros(1, np.float32)}, CheckpointError, "no parameter for stranger"),
        ({"layer._layer.bias": np.zeros(ROWS + 1, np.float32)}, CheckpointError, r"\(33,\) in the file, \(32,\)"),
        ({"layer._layer.bias": np.zeros(ROWS, np.int32)}, CheckpointError, "int32 in the file, float32"),
        ({"c._key_input_quantizer.t_scale": np.ones(4, np.float32)}, PlanError, "c: the network has no PagedAttention"),
    ],
)
def test_a_file_that_does_not_fit_leaves_a_network_as_it_was(one, mindspore, more, error, said):
    from gs_mindformers import cells

    network, x = one(), mindspore.Tensor(Case("W8").x)
    before, product = list(network.parameters_dict()), network(x).asnumpy()
    with pytest.raises(error, match=said):
        cells.install(network, Case("W8").parameters() | {name: to_raw(array) for name, array in more.items()})
    assert list(network.parameters_dict()) == before
    assert np.array_equal(network(x).asnumpy(), product)


def test_experts_have_no_quantized_cell_and_it_is_said(network):
    from gs_mindformers import cells

    for name in ("layers.0.w1", "layers.0.experts.0.w1"):
        with pytest.raises(PlanError, match="no quantized cell yet"):
            cells.deploy(network("mixture"), {name: cells.Spec(8)})
