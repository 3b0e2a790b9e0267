"""A layer's arrays in every layout: names, dtypes, shapes, and that a kernel computes the layer with them."""

from typing import Any

import numpy as np
import pytest

from gs_core import (
    CheckpointError,
    LayerInfo,
    LinearMap,
    QuantizationArgs,
    QuantizationScheme,
    QuantizedTensor,
    StaticInput,
    numerics,
)
from gs_core.arrays import RawTensor, astype, from_raw, numpy_dtype, to_numpy
from gs_core.interfaces import Output
from gs_core.storage import read_header
from gs_golden_stick import Ascend, GoldenStick, GoldenStickNetwork, int4

OUT, IN, GROUP = 12, 64, 32
RANDOM = np.random.default_rng(0)
WEIGHT = RANDOM.standard_normal((OUT, IN)).astype(np.float32)
X = (RANDOM.standard_normal((5, IN)) + 1).astype(np.float32)
TOKEN = QuantizationArgs(format="int8", granularity="token", dynamic=True)
STATIC = QuantizationArgs(format="int8", granularity="tensor", symmetric=False)


def scheme(bits: int, granularity: str = "channel", symmetric: bool = True, inputs: Any = None) -> QuantizationScheme:
    size = GROUP if granularity == "group" else None
    args = QuantizationArgs(format=f"int{bits}", granularity=granularity, group_size=size, symmetric=symmetric)
    return QuantizationScheme(weights=args, inputs=inputs)


SCHEMES = {
    "W8A16": scheme(8),
    "W8A16 asym": scheme(8, symmetric=False),
    "W4A16": scheme(4),
    "W4A16 group": scheme(4, "group"),
    "W4A16 group asym": scheme(4, "group", symmetric=False),
    "W8A8": scheme(8, inputs=STATIC),
    "W8A8_DYNAMIC": scheme(8, inputs=TOKEN),
    "W4A8_DYNAMIC": scheme(4, "group", inputs=TOKEN),
}


def quantized(name: str, dtype: str) -> tuple[QuantizedTensor, StaticInput | None]:
    tensor = numerics.quantize_weight(WEIGHT, SCHEMES[name].weights, dtype)
    if SCHEMES[name].inputs is not STATIC:
        return tensor, None
    scale, zero_point = numerics.scale_from_range(X.min().reshape(1), X.max().reshape(1), STATIC, dtype)
    return tensor, StaticInput(scale, zero_point)


def packed(plugin: Any, name: str, dtype: str = "float16") -> dict[str, Any]:
    tensor, inputs = quantized(name, dtype)
    return plugin.parameters(tensor, inputs, plugin.layout(SCHEMES[name]))


def described(arrays: dict[str, Any]) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {name: (str(array.dtype), tuple(array.shape)) for name, array in arrays.items()}


def numbers(array: Any) -> np.ndarray:
    return from_raw(array) if isinstance(array, RawTensor) else to_numpy(array)


# --- names, dtypes, shapes -----------------------------------------------------------------------------------

INT8, INT4 = ("int8", (OUT, IN)), ("qint4x2", (IN, OUT // 2))
GROUPS = (IN // GROUP, OUT)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("W8A16", {"weight": INT8, "weight_scale": ("float16", (OUT,)), "weight_offset": ("int32", (OUT,))}),
        ("W4A16", {"weight": INT4, "weight_scale": ("float16", (OUT,)), "weight_offset": ("int32", (OUT,))}),
        ("W4A16 group", {"weight": INT4, "weight_scale": ("float16", GROUPS), "weight_offset": ("int32", GROUPS)}),
        ("W8A8_DYNAMIC", {"weight": INT8, "weight_scale": ("float32", (OUT,)), "weight_offset": ("int32", (OUT,))}),
        (
            "W8A8",
            {
                "weight": INT8,
                "deq_scale": ("float32", (OUT,)),
                "quant_bias": ("int32", (OUT,)),
                "input_scale": ("float16", (IN,)),
                "input_offset": ("int8", (IN,)),
            },
        ),
    ],
)
def test_golden_sticks_folder(name, expected):
    assert described(packed(GoldenStick(), name)) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("W8A16", {"weight_scale": ("float16", (OUT,)), "weight_zp": ("float16", (OUT,))}),
        ("W4A16", {"weight_scale": ("float16", (OUT,)), "weight_zp": ("float16", (OUT,))}),
        ("W4A16 group", {"weight_scale": ("float16", GROUPS), "weight_zp": ("float16", GROUPS)}),
        ("W8A8_DYNAMIC", {"weight_scale": ("float32", (OUT,))}),
        ("W4A8_DYNAMIC", {"weight_scale": ("float32", GROUPS)}),
        ("W8A8", {"quant_bias": ("int32", (OUT,)), "dequant_scale": ("int64", (OUT,))}),
    ],
)
def test_golden_sticks_network(name, expected):
    expected = {f"_layer.matmul.{suffix}": value for suffix, value in expected.items()}
    expected["_layer.weight"] = INT4 if name.startswith("W4") else INT8
    if name == "W8A8":
        expected |= {"quant_op.input_scale": ("float16", (IN,)), "quant_op.input_zp": ("int8", (IN,))}
    assert described(packed(GoldenStickNetwork(), name)) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("W8A16", {"weight_scale": ("float32", (OUT, 1)), "weight_offset": ("float32", (OUT, 1))}),
        ("W8A8_DYNAMIC", {"weight_scale": ("float32", (OUT, 1)), "weight_offset": ("float32", (OUT, 1))}),
        (
            "W8A8",
            {
                "deq_scale": ("int64", (OUT,)),
                "quant_bias": ("int32", (OUT,)),
                "input_scale": ("float32", (1,)),
                "input_offset": ("float32", (1,)),
            },
        ),
    ],
)
def test_msmodelslims_folder(name, expected):
    assert described(packed(Ascend(), name)) == {"weight": INT8, **expected}


def test_what_bfloat16_models_have_otherwise():
    assert packed(Ascend(), "W8A8", "bfloat16")["deq_scale"].dtype == np.float32
    network = packed(GoldenStickNetwork(), "W8A8", "bfloat16")
    assert network["_layer.matmul.dequant_scale"].dtype == np.float32
    assert network["quant_op.input_scale"].dtype == numpy_dtype("bfloat16")
    for plugin, name in ((GoldenStick(), "weight_scale"), (GoldenStickNetwork(), "_layer.matmul.weight_scale")):
        assert packed(plugin, "W8A8_DYNAMIC", "bfloat16")[name].dtype == numpy_dtype("bfloat16")


def test_an_int64_scale_is_float32s_bit_pattern():
    plain, bits = packed(GoldenStick(), "W8A8")["deq_scale"], packed(Ascend(), "W8A8")["deq_scale"]
    assert (bits < 2**32).all()
    np.testing.assert_array_equal(bits.astype(np.uint32).view(np.float32), plain)


@pytest.mark.parametrize("name", sorted(SCHEMES.keys() - {"W4A8_DYNAMIC"}))
def test_every_array_lies_in_a_file_as_it_lies_in_memory(name):
    for plugin in (GoldenStick(), GoldenStickNetwork()):
        for array in packed(plugin, name).values():
            assert isinstance(array, RawTensor) or array.flags.c_contiguous


# --- a network's variants ------------------------------------------------------------------------------------


def test_a_network_without_suppression_multiplies_by_one_scale():
    arrays, (_, inputs) = packed(GoldenStickNetwork("none"), "W8A8"), quantized("W8A8", "float16")
    scale, offset = arrays["quant_op.input_scale"], arrays["quant_op.input_zp"]
    assert described({"scale": scale, "offset": offset}) == {"scale": ("float16", (1,)), "offset": ("float16", (1,))}
    np.testing.assert_allclose(scale.astype(np.float64) * inputs.scale, 1, rtol=2**-10)
    np.testing.assert_array_equal(offset, inputs.zero_point)


@pytest.mark.parametrize("name", ["W4A16 group", "W8A8_DYNAMIC"])
def test_a_network_that_smooths_online_has_nothing_left_to_smooth(name):
    arrays = packed(GoldenStickNetwork("awq"), name)
    smooth = arrays.pop("_layer.matmul.smooth_scale")
    assert (smooth.dtype, smooth.shape) == (np.float16, (IN,)) and (smooth == 1).all()
    assert described(arrays) == described(packed(GoldenStickNetwork(), name))


# --- what kernels compute ------------------------------------------------------------------------------------


def product(arrays: dict[str, Any], inputs: np.ndarray) -> np.ndarray:
    """The static int8 product of Golden Stick's and msModelSlim's kernels."""
    scale, offset = numbers(arrays["input_scale"]).astype(np.float32), numbers(arrays["input_offset"])
    codes = np.clip(np.round(inputs / scale) + offset, -128, 127).astype(np.int64)
    deq = numbers(arrays["deq_scale"])
    deq = deq if deq.dtype == np.float32 else deq.astype(np.uint32).view(np.float32)
    return (codes @ numbers(arrays["weight"]).astype(np.int64).T + numbers(arrays["quant_bias"])) * deq


def fake(tensor: QuantizedTensor, inputs: StaticInput) -> np.ndarray:
    """The same layer in floating point, on the quantized activations."""
    x = numerics.fake_quantize(X, STATIC, inputs.scale, inputs.zero_point)
    return x.astype(np.float64) @ numerics.dequantize(tensor).T.astype(np.float64)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("plugin", [GoldenStick(), Ascend()], ids=["golden_stick", "ascend"])
def test_a_static_product_is_the_layer(plugin, dtype):
    tensor, inputs = quantized("W8A8", dtype)
    np.testing.assert_allclose(product(packed(plugin, "W8A8", dtype), X), fake(tensor, inputs), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["W4A16", "W4A16 group", "W4A16 group asym", "W8A16 asym"])
def test_a_weight_only_kernel_finds_each_inputs_scale(name):
    """Golden Stick's groups take every n-th channel where a weight lies transposed; here neighbours, always."""
    arrays, (tensor, _) = packed(GoldenStickNetwork(), name), quantized(name, "float16")
    weight = numbers(arrays["_layer.weight"])
    weight = int4.unpack(weight) if name.startswith("W4") else weight
    scale, added = (
        np.atleast_2d(arrays[f"_layer.matmul.{p}"]).astype(np.float32) for p in ("weight_scale", "weight_zp")
    )
    of = np.arange(IN) // (IN // len(scale))
    np.testing.assert_array_equal((weight + added[of].T) * scale[of].T, numerics.dequantize(tensor))


@pytest.mark.parametrize("bias", [np.float32, np.float16])
def test_vllm_ascend_finds_the_bias_in_quant_bias(bias, tmp_path):
    tensor, inputs = quantized("W8A8", "float16")
    values = RANDOM.standard_normal(OUT).astype(bias)
    tensors = [(f"layer.{suffix}", array) for suffix, array in packed(Ascend(), "W8A8").items()]
    (file,) = Ascend().export(output=Output(tmp_path, 0, 1, [*tensors, ("layer.bias", values)]))
    arrays = {name.removeprefix("layer."): from_raw(t.read()) for name, t in read_header(tmp_path / file).items()}
    deq = arrays["deq_scale"].astype(np.uint32).view(np.float32)
    assert (np.abs(product(arrays, X) - (fake(tensor, inputs) + values)) < 0.501 * deq).all()  # half a unit
    np.testing.assert_array_equal(arrays["bias"], values)


def test_a_bias_that_quant_bias_cannot_hold_is_an_error(tmp_path):
    """A row of next to nothing beside a bias: in its units the bias is beyond int32."""
    arrays = packed(Ascend(), "W8A8", "bfloat16")
    arrays["deq_scale"] = arrays["deq_scale"] * np.float32(1e-10)
    tensors = [*((f"layer.{suffix}", array) for suffix, array in arrays.items()), ("layer.bias", np.ones(OUT, "f4"))]
    with pytest.raises(CheckpointError, match="layer: its bias is too large beside its weights"):
        Ascend().export(output=Output(tmp_path, 0, 1, tensors))


# --- what a layer divides its own input by -------------------------------------------------------------------


DIVISOR = np.linspace(0.5, 2, IN, dtype=np.float32)


def test_a_static_layer_divides_by_both_at_once():
    """x / divisor, quantized by one scale, is x quantized by a scale for each feature."""
    tensor, inputs = quantized("W8A8", "float16")
    exact = StaticInput(astype(inputs.scale, "float32"), inputs.zero_point)
    arrays = GoldenStick().parameters(tensor, exact, "W8A8", DIVISOR)
    x = numerics.fake_quantize(X / DIVISOR, STATIC, exact.scale, exact.zero_point).astype(np.float64)
    np.testing.assert_allclose(product(arrays, X), x @ numerics.dequantize(tensor).T, rtol=1e-5, atol=1e-5)
    network = GoldenStickNetwork().parameters(tensor, exact, "W8A8", DIVISOR)
    np.testing.assert_array_equal(network["quant_op.input_scale"], arrays["input_scale"])


@pytest.mark.parametrize("name", ["W4A16 group", "W8A8_DYNAMIC"])
def test_other_layers_of_a_network_multiply_by_its_inverse(name):
    arrays = GoldenStickNetwork().parameters(*quantized(name, "float32"), name.split()[0], DIVISOR)
    np.testing.assert_allclose(arrays["_layer.matmul.smooth_scale"] * DIVISOR, np.ones(IN), rtol=1e-6)


def test_a_product_of_scales_that_float16_cannot_hold_is_an_error():
    tensor, inputs = quantized("W8A8", "float16")
    for factor in (1e-7, 1e7):
        with pytest.raises(CheckpointError, match="beyond what float16 holds"):
            GoldenStick().parameters(tensor, inputs, "W8A8", DIVISOR * np.float32(factor))


def test_a_reciprocal_that_float16_cannot_hold_is_an_error():
    tensor, _ = quantized("W8A8", "float16")
    with pytest.raises(CheckpointError, match="beyond what float16 holds"):
        GoldenStickNetwork("none").parameters(tensor, StaticInput(np.float16([1e-5])), "W8A8")


def test_a_map_is_taken_from_the_line():
    tensor, inputs = quantized("W8A8", "float16")
    plugin = GoldenStick()
    layer = LayerInfo("layer", 0, tensor.shape, "layer.input", "float16")
    given = {"tensor": tensor, "inputs": inputs, "layout": "W8A8", "layer": layer}
    arrays = plugin.pack(**given, online=LinearMap(scale=DIVISOR))
    np.testing.assert_array_equal(
        arrays["input_scale"], plugin.parameters(tensor, inputs, "W8A8", DIVISOR)["input_scale"]
    )
    assert len(set(plugin.pack(**given, online=None)["input_scale"].tolist())) == 1


# --- where Golden Stick is wrong -----------------------------------------------------------------------------


def test_the_offset_is_taken_out_exactly():
    """Golden Stick rounds it through the model's dtype: 3 of 12176 in float16."""
    tensor, _ = quantized("W8A8", "float16")
    codes = np.full((OUT, 4096), 127, np.int8)
    wide = QuantizedTensor(codes, tensor.scale, None, tensor.args)
    arrays = GoldenStick().parameters(wide, StaticInput(np.float16([0.1]), np.float32([-127])), "W8A8")
    assert arrays["quant_bias"].tolist() == [127 * 127 * 4096] * OUT


def test_activations_of_one_sign_have_an_offset_that_int8_holds():
    """Golden Stick's range leaves out zero, its offset of -1414 wraps around to 122."""
    scale, zero_point = numerics.scale_from_range(np.float32([10]), np.float32([11.8]), STATIC, "float16")
    tensor, _ = quantized("W8A8", "float16")
    arrays = GoldenStick().parameters(tensor, StaticInput(scale, zero_point), "W8A8")
    assert set(arrays["input_offset"].tolist()) == {-128}


@pytest.mark.parametrize("offset", [-1414.0, 128.0, 0.5])
def test_an_offset_that_int8_cannot_hold_is_an_error(offset):
    tensor, _ = quantized("W8A8", "float16")
    inputs = StaticInput(np.float16([0.1]), np.float32([offset]))
    for plugin in (GoldenStick(), GoldenStickNetwork(), GoldenStickNetwork("none"), Ascend()):
        with pytest.raises(CheckpointError, match=f"zero point is {offset}, which int8 cannot hold"):
            plugin.parameters(tensor, inputs, "W8A8")


def test_a_product_that_int32_cannot_hold_is_an_error():
    tensor, _ = quantized("W8A8", "float16")
    wide = QuantizedTensor(np.full((2, 200_000), 127, np.int8), tensor.scale[:2], None, tensor.args)
    with pytest.raises(CheckpointError, match="overflows int32"):
        GoldenStick().parameters(wide, StaticInput(np.float16([0.1]), np.float32([-128])), "W8A8")


def test_every_static_layer_has_a_divisor_for_each_input_feature():
    """Golden Stick's are reciprocals in layers that it does not smooth, under the same type."""
    _, inputs = quantized("W8A8", "float16")
    for arrays in (packed(GoldenStick(), "W8A8"), packed(GoldenStickNetwork(), "W8A8")):
        scale = next(array for name, array in arrays.items() if name.endswith("input_scale"))
        np.testing.assert_array_equal(scale, np.full(IN, astype(inputs.scale, "float16")))
