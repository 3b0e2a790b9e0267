"""int8 caches: what a network and msModelSlim's folder hold of them, and that it comes back."""

import json
from typing import Any

import numpy as np
import pytest

from gs_core import CacheInfo, CacheNumbers, CheckpointError, QuantizationArgs, StaticInput
from gs_core.arrays import astype, dtype_name
from gs_core.interfaces import Finished, Output, Site
from gs_core.storage import SINGLE, Checkpoint, read_header, write_safetensors
from gs_golden_stick import Ascend, GoldenStick, GoldenStickNetwork

NAME, HEADS, SIZE = "model.layers.0.self_attn", 2, 4
CHANNELS = HEADS * SIZE
CACHE = CacheInfo(
    NAME, 0, tuple(Site(f"{NAME}.{kind}", CHANNELS, (), kind, HEADS, "float16") for kind in ("key", "value"))
)


def args(granularity: str = "channel", symmetric: bool = True, **more: Any) -> QuantizationArgs:
    return QuantizationArgs(**{"format": "int8", "granularity": granularity, "symmetric": symmetric} | more)


def numbers(of: QuantizationArgs, dtype: str = "float16") -> CacheNumbers:
    count = {"tensor": 1, "head": HEADS, "channel": CHANNELS}[of.granularity]
    scales = {
        kind: astype(np.arange(1, count + 1) / (64 if kind == "key" else 128), dtype) for kind in ("key", "value")
    }
    zero_point = None if of.symmetric else np.arange(count, dtype=np.float32) - 3
    return CacheNumbers(of, {kind: StaticInput(scale, zero_point) for kind, scale in scales.items()})


def described(arrays: dict[str, Any]) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {name.removeprefix(f"{NAME}."): (dtype_name(a), tuple(a.shape)) for name, a in arrays.items()}


@pytest.mark.parametrize(
    ("dtype", "fused"),
    [("float16", ("int64", "int32")), ("float32", ("int64", "int32")), ("bfloat16", ("float16",) * 2)],
)
def test_a_network(dtype, fused):
    """As mindspore_gs's DEPLOY mode makes it; its QUANTIZE mode writes two more copies, which no network takes."""
    arrays = GoldenStickNetwork().pack_cache(CACHE, numbers(args(), dtype))
    assert described(arrays) == {
        "_key_input_quantizer.t_scale": (dtype, (CHANNELS,)),
        "_key_input_quantizer.t_zp": ("int8", (CHANNELS,)),
        "_value_input_quantizer.t_scale": (dtype, (CHANNELS,)),
        "_value_input_quantizer.t_zp": ("int8", (CHANNELS,)),
        "quant_pa.k_v_scale_fusion": (fused[0], (2, CHANNELS)),
        "quant_pa.k_v_zp_fusion": (fused[1], (2, CHANNELS)),
    }


def test_msmodelslims_folder():
    arrays = Ascend().pack_cache(CACHE, numbers(args()))
    kinds = {f"{p}_proj.kv_cache_{what}": ("float32", (CHANNELS,)) for p in "kv" for what in ("scale", "offset")}
    assert described(arrays) == kinds


def test_the_attention_kernel_gets_the_same_scales_and_the_offset_that_it_adds():
    arrays = GoldenStickNetwork().pack_cache(CACHE, numbers(args(symmetric=False)))
    of = {name.removeprefix(f"{NAME}."): array for name, array in arrays.items()}
    scales = [of[f"_{kind}_input_quantizer.t_scale"] for kind in ("key", "value")]
    fused = of["quant_pa.k_v_scale_fusion"].astype(np.uint32).view(np.float32)
    np.testing.assert_array_equal(fused, np.stack(scales).astype(np.float32))
    assert of["_key_input_quantizer.t_zp"].tolist() == [-3, -2, -1, 0, 1, 2, 3, 4]
    np.testing.assert_array_equal(of["quant_pa.k_v_zp_fusion"][0], -of["_key_input_quantizer.t_zp"].astype(np.int32))


@pytest.mark.parametrize(("granularity", "each"), [("tensor", [1] * 8), ("head", [1] * 4 + [2] * 4)])
def test_a_scale_for_several_channels_is_written_for_each(granularity, each):
    for plugin, name in ((Ascend(), "k_proj.kv_cache_scale"), (GoldenStickNetwork(), "_key_input_quantizer.t_scale")):
        scale = plugin.pack_cache(CACHE, numbers(args(granularity)))[f"{NAME}.{name}"]
        assert (scale * 64).tolist() == each


@pytest.mark.parametrize(
    ("plugin", "symmetric"), [(GoldenStickNetwork(), True), (GoldenStickNetwork(), False), (Ascend(), True)]
)
def test_what_was_written_is_read(plugin, symmetric, tmp_path):
    given = numbers(args(symmetric=symmetric))
    write_safetensors(tmp_path / SINGLE, [*plugin.pack_cache(CACHE, given).items(), ("norm", np.ones(2))])
    checkpoint = Checkpoint(tmp_path)
    assert list(plugin.read(checkpoint, {})[0].tensors) == ["norm"]
    (found,) = plugin.read_caches(checkpoint, {}, [CACHE]).values()
    assert found.args == given.args
    for kind, static in given.static.items():
        np.testing.assert_array_equal(found.static[kind].scale, static.scale)
        np.testing.assert_array_equal(found.static[kind].zero_point, static.zero_point)


def test_a_checkpoint_without_caches(tmp_path):
    write_safetensors(tmp_path / SINGLE, [("norm", np.ones(2))])
    assert Ascend().read_caches(Checkpoint(tmp_path), {}, [CACHE]) == {}


@pytest.mark.parametrize("damage", ["missing", "short"])
def test_half_a_cache(damage, tmp_path):
    arrays, name = Ascend().pack_cache(CACHE, numbers(args())), f"{NAME}.v_proj.kv_cache_scale"
    arrays = arrays | {name: np.ones(3, "f4")} if damage == "short" else {k: v for k, v in arrays.items() if k != name}
    write_safetensors(tmp_path / SINGLE, arrays.items())
    with pytest.raises(CheckpointError, match=name):
        Ascend().read_caches(Checkpoint(tmp_path), {}, [CACHE])


def test_the_description_says_c8(tmp_path):
    arrays = Ascend().pack_cache(CACHE, numbers(args()))
    (file,) = Ascend().export(output=Output(tmp_path, 0, 1, list(arrays.items())))
    shards = {file: {name: t.nbytes for name, t in read_header(tmp_path / file).items()}}
    final = Finished({}, {}, [], [], shards, {}, {CACHE: args()})
    Ascend().export(output=Output(tmp_path, 1, 1, final=final))
    description = json.loads((tmp_path / "quant_model_description.json").read_text())
    assert {description[name] for name in arrays} == {"C8"}
    assert (description["kv_cache_type"], description["model_quant_type"]) == ("C8", "FLOAT")


@pytest.mark.parametrize(
    ("plugin", "asked", "message"),
    [
        (GoldenStickNetwork(), args(format="int4"), "C8 is a static int8 cache"),
        (GoldenStickNetwork(), args("token", dynamic=True), "C8 is a static int8 cache"),
        (GoldenStickNetwork(), args("group", group_size=2), "not per group"),
        (Ascend(), args(symmetric=False), "right for symmetric caches alone"),
        (GoldenStick(), args(), "use the format golden_stick_network or ascend"),
    ],
)
def test_caches_that_are_refused(plugin, asked, message):
    assert message in (plugin.unsupported_cache(CACHE, asked) or "")


def test_keys_before_their_rotation_are_refused():
    sites = (Site("k", CHANNELS, (), "unrotated_key", HEADS, "float16"), CACHE.sites[1])
    assert "before_rope: false" in (Ascend().unsupported_cache(CacheInfo(NAME, 0, sites), args()) or "")
    assert Ascend().unsupported_cache(CACHE, args()) is None
