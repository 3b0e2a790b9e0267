"""A plugin that returns a wrong tensor is named in an error before a file of its block is written."""

from dataclasses import replace

import numpy as np
import pytest

from gs_core import numerics
from gs_core.checks import array_fault, tensor_fault
from gs_schemas import SCHEMES

WEIGHT = np.random.default_rng(0).standard_normal((8, 256)).astype(np.float32)


def tensor(preset="W4A16_ASYM"):
    return numerics.quantize_weight(WEIGHT, SCHEMES[preset].weights, "bfloat16")


def with_scale(value):
    scale = tensor().scale.copy()
    scale[1, 0] = value
    return replace(tensor(), scale=scale)


@pytest.mark.parametrize("preset", ["W4A16", "W4A16_ASYM", "W8A8"])
def test_tensors_of_the_numerics_have_no_fault(preset):
    assert tensor_fault(tensor(preset)) is None


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (with_scale(np.nan), "NaN"),
        (with_scale(np.inf), "infinity"),
        (with_scale(0), "zero"),
        (with_scale(-1), "negative"),
        (replace(tensor(), scale=tensor().scale.astype(np.int8)), "scales are int8"),
        (replace(tensor(), scale=tensor().scale[:, :1]), "scales have shape"),
        (replace(tensor(), zero_point=None), "zero points are missing"),
        (replace(tensor(), zero_point=tensor().zero_point + np.int8(16)), "zero points are between"),
        (replace(tensor(), codes=tensor().codes * np.int8(2)), "codes are between"),
    ],
)
def test_a_fault_is_named(wrong, says):
    assert says in tensor_fault(wrong)


def test_a_symmetric_scale_of_four_bits_may_be_negative():
    found = tensor("W4A16")
    assert tensor_fault(replace(found, scale=-found.scale)) is None


def test_an_array_whose_dtype_rounds_a_scale_to_zero_is_not_written():
    assert "zero" in array_fault("smooth_scale", np.array([1e-9], np.float16))
    assert array_fault("weight_offset", np.zeros(2, np.float16)) is None


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_weights_in_float8_have_float32_scales(dtype):
    assert numerics.scale_dtype(SCHEMES["W8A8"].weights, dtype) == "float32"
    assert numerics.scale_dtype(SCHEMES["W8A8"].weights, "bfloat16") == "bfloat16"
