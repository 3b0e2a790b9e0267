"""The tensors of a layer, by name, dtype, shape and bytes, as engines read them."""

import numpy as np
import pytest

from gs_compressed_tensors import CompressedTensors
from gs_core import QuantizationArgs, QuantizationScheme, QuantizedTensor, StaticInput
from gs_core.arrays import numpy_dtype, to_raw
from gs_schemas import SCHEMES

OUT, IN, GROUP = 20, 256, 128  # twenty rows: the zero points of a packed layer do not fill their last word
BFLOAT16 = numpy_dtype("bfloat16")


def tensor(scheme: QuantizationScheme) -> QuantizedTensor:
    """Random codes under a scheme."""
    args, random = scheme.weights, np.random.default_rng(0)
    low, high = int(args.number.minimum), int(args.number.maximum)
    shape = {"group": (OUT, IN // (args.group_size or IN)), "channel": (OUT, 1), "tensor": (1, 1)}[args.granularity]
    zero_point = None if args.symmetric else random.integers(low, high + 1, shape, np.int8)
    scale = random.uniform(0.01, 0.1, shape).astype(BFLOAT16)
    return QuantizedTensor(random.integers(low, high + 1, (OUT, IN), np.int8), scale, zero_point, args)


def packed(scheme: QuantizationScheme, inputs: StaticInput | None = None) -> dict[str, np.ndarray]:
    plugin = CompressedTensors()
    return plugin.pack(tensor=tensor(scheme), inputs=inputs, layout=plugin.layout(scheme))


def described(arrays: dict[str, np.ndarray]) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {name: (str(array.dtype), array.shape) for name, array in arrays.items()}


def words(codes: list[int], bits: int) -> list[int]:
    """The definition, one value after another, in Python's integers."""
    number = sum((int(code) + (1 << (bits - 1))) << (lane * bits) for lane, code in enumerate(codes))
    found = [number >> start & 0xFFFFFFFF for start in range(0, len(codes) * bits, 32)]
    return [word - (1 << 32) if word >= 1 << 31 else word for word in found]


def weight_only(bits: int, symmetric: bool = True, granularity: str = "group") -> QuantizationScheme:
    size = GROUP if granularity == "group" else None
    return QuantizationScheme(
        weights=QuantizationArgs(format=f"int{bits}", granularity=granularity, group_size=size, symmetric=symmetric)
    )


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_packed_weights(bits):
    scheme = weight_only(bits)
    arrays, given = packed(scheme), tensor(scheme)
    assert described(arrays) == {
        "weight_packed": ("int32", (OUT, IN * bits // 32)),
        "weight_scale": ("bfloat16", (OUT, IN // GROUP)),
        "weight_shape": ("int64", (2,)),
    }
    assert arrays["weight_packed"].tolist() == [words(row, bits) for row in given.codes.tolist()]
    assert arrays["weight_scale"].tobytes() == given.scale.tobytes()
    assert arrays["weight_shape"].tolist() == [OUT, IN]


def test_packed_weights_with_a_scale_for_each_channel():
    assert described(packed(weight_only(4, granularity="channel")))["weight_scale"] == ("bfloat16", (OUT, 1))


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_zero_points_are_packed_along_the_output_features(bits):
    scheme = weight_only(bits, symmetric=False)
    arrays, given = packed(scheme), tensor(scheme)
    assert described(arrays)["weight_zero_point"] == ("int32", (-(-OUT * bits // 32), IN // GROUP))
    columns = [words(column, bits) for column in given.zero_point.T.tolist()]
    assert arrays["weight_zero_point"].T.tolist() == columns


@pytest.mark.parametrize("name", ["W4A16", "W4A16_ASYM", "W8A16", "W8A8", "W8A8_STATIC"])
def test_every_array_lies_in_a_file_as_it_lies_in_memory(name):
    """A transposed view would be written with its rows and columns exchanged."""
    for array in packed(SCHEMES[name]).values():
        assert array.flags.c_contiguous
        assert to_raw(array).data.tobytes() == array.tobytes()


def test_int8_weights_for_activations_that_are_quantized_at_run_time():
    arrays, given = packed(SCHEMES["W8A8"]), tensor(SCHEMES["W8A8"])
    assert described(arrays) == {"weight": ("int8", (OUT, IN)), "weight_scale": ("bfloat16", (OUT, 1))}
    np.testing.assert_array_equal(arrays["weight"], given.codes)


def test_int8_weights_for_activations_with_a_stored_scale():
    inputs = StaticInput(np.array([0.04], BFLOAT16))
    assert described(packed(SCHEMES["W8A8_STATIC"], inputs)) == {
        "weight": ("int8", (OUT, IN)),
        "weight_scale": ("bfloat16", (OUT, 1)),
        "input_scale": ("bfloat16", (1,)),
    }


def test_a_stored_zero_point_of_activations_is_int8():
    inputs = StaticInput(np.array([0.04], BFLOAT16), np.array([-7.0], np.float32))
    arrays = packed(SCHEMES["W8A8_STATIC"], inputs)
    assert described(arrays)["input_zero_point"] == ("int8", (1,))
    assert arrays["input_zero_point"].tolist() == [-7]


def test_one_scale_for_the_whole_weight_is_a_vector_of_one():
    args = SCHEMES["W8A8"].weights.model_copy(update={"granularity": "tensor"})
    arrays = packed(SCHEMES["W8A8"].model_copy(update={"weights": args}))
    assert described(arrays)["weight_scale"] == ("bfloat16", (1,))
