"""Quantized KV caches as engines read them: the entry in config.json, and two scales beside each attention."""

import numpy as np
import pytest

from gs_compressed_tensors import CompressedTensors, caches
from gs_core import CacheInfo, CacheNumbers, CheckpointError, QuantizationArgs, QuantizationScheme, Site, StaticInput
from gs_core.arrays import numpy_dtype
from gs_core.storage import SINGLE, Checkpoint, write_safetensors

BFLOAT16 = numpy_dtype("bfloat16")
NAME, HEADS = "model.layers.0.self_attn", 2
INFO = CacheInfo(NAME, 0, tuple(Site(f"{NAME}.{kind}", 32, (), kind, HEADS, "bfloat16") for kind in ("key", "value")))
UNROTATED = CacheInfo(NAME, 0, (Site(f"{NAME}.unrotated_key", 32, (), "unrotated_key", HEADS, "bfloat16"),))


def args(**given):
    return QuantizationArgs.model_validate({"format": "fp8_e4m3", "granularity": "tensor"} | given)


@pytest.mark.parametrize(
    ("given", "type_", "strategy"),
    [({}, "float", "tensor"), ({"granularity": "head"}, "float", "attn_head"), ({"format": "int8"}, "int", "tensor")],
)
def test_the_config_says_once_how_every_cache_is_quantized(given, type_, strategy):
    entry = caches.to_config({INFO: args(**given)})
    assert (entry["num_bits"], entry["type"], entry["strategy"]) == (8, type_, strategy)
    assert (entry["symmetric"], entry["dynamic"]) == (True, False)
    assert caches.to_config({}) is None


@pytest.mark.parametrize(("granularity", "shape"), [("tensor", (1,)), ("head", (HEADS, 1, 1))])
def test_scales_have_the_names_and_shapes_that_the_library_registers(granularity, shape):
    elements = 1 if granularity == "tensor" else HEADS
    key, value = (StaticInput(np.full(elements, scale, BFLOAT16)) for scale in (0.5, 0.25))
    arrays = CompressedTensors().pack_cache(
        INFO, CacheNumbers(args(granularity=granularity), {"key": key, "value": value})
    )
    assert {n: (a.shape, float(a.flat[0]), a.dtype) for n, a in arrays.items()} == {
        f"{NAME}.k_scale": (shape, 0.5, BFLOAT16),
        f"{NAME}.v_scale": (shape, 0.25, BFLOAT16),
    }


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"format": "int4"}, "holds fp8_e4m3 and int8 caches, not int4; use"),
        ({"granularity": "channel"}, "scales per tensor or head, not per channel; use"),
        ({"granularity": "token", "dynamic": True}, "no scales found at run time for a cache; use"),
        ({"format": "int8", "symmetric": False}, "without a zero point; use"),
        ({"scale_format": "float32"}, "in the model's dtype; leave scale_format out"),
    ],
)
def test_what_it_does_not_hold_is_refused_with_what_it_does(given, why):
    assert why in CompressedTensors().unsupported_cache(INFO, args(**given))


def test_keys_are_quantized_as_engines_cache_them():
    assert "set before_rope: false" in CompressedTensors().unsupported_cache(UNROTATED, args())


def test_all_caches_have_one_scheme():
    quantized, head = QuantizationScheme(kv_cache=args()), QuantizationScheme(kv_cache=args(granularity="head"))
    layers = {"model.layers.0.mlp.up_proj": QuantizationScheme(weights=QuantizationArgs(format="int8"))}
    conflicts = CompressedTensors().conflicts
    assert conflicts(layers | {"a": quantized, "b": quantized}) == []
    assert conflicts(layers | {"a": QuantizationScheme(), "b": QuantizationScheme()}) == []
    for other, rendered in ((head, "kv fp8_e4m3 head"), (QuantizationScheme(), "float")):
        assert conflicts(layers | {"a": quantized, "b": other}) == [
            f"a is kv fp8_e4m3 tensor and b is {rendered}: compressed-tensors has one kv_cache_scheme for all; "
            "give every attention module the same kv_cache"
        ]


# --- reading -----------------------------------------------------------------------------------------------------


def folder(tmp_path, **tensors):
    write_safetensors(tmp_path / SINGLE, [(f"{NAME}.{suffix}", array) for suffix, array in tensors.items()])
    return Checkpoint(tmp_path)


def read(checkpoint, entry):
    return CompressedTensors().read_caches(checkpoint, {"quantization_config": {"kv_cache_scheme": entry}}, [INFO])


def test_scales_of_other_writers_may_have_no_axis(tmp_path):
    found = read(
        folder(tmp_path, k_scale=np.float32(0.5).reshape(()), v_scale=np.array([0.25], np.float32)),
        {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "tensor", "dynamic": False},
    )[NAME]
    assert found.args == args()
    assert (found.static["key"].scale, found.static["value"].scale) == ([0.5], [0.25])


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"strategy": "channel"}, "cannot read this kv_cache_scheme of compressed-tensors: "),
        ({"dynamic": True}, "cannot read this kv_cache_scheme of compressed-tensors: "),
        ({"num_bits": 4}, "cannot read this kv_cache_scheme of compressed-tensors: "),
        ({"strategy": "attn_head"}, f"{NAME}.k_scale has 1 elements, its scheme needs 2"),
        ({}, f"has a kv_cache_scheme, but no '{NAME}.v_scale'"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path, entry, message):
    entry = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "tensor", "dynamic": False} | entry
    with pytest.raises(CheckpointError, match=message.replace("[", r"\[")):
        read(folder(tmp_path, k_scale=np.ones(1, np.float32)), entry)


def test_a_folder_without_the_entry_has_no_quantized_cache(tmp_path):
    assert read(folder(tmp_path, k_scale=np.ones(1, np.float32)), None) == {}
