"""Keys and values of a network that was built to generate: int8 caches, as the same network without one computes."""

from typing import Any

import numpy as np
import pytest

from gs_core import quantize
from gs_core.arrays import from_raw
from gs_core.storage import Checkpoint
from gs_mindformers import MindFormers
from gs_schemas import Recipe

pytestmark = pytest.mark.lane

CACHED = {"use_past": True, "block_size": 16, "num_blocks": 8}
KV8 = Recipe.parse(
    {
        "algorithms": ["kv_cache"],
        "scheme": {"kv_cache": {"format": "int8", "granularity": "channel"}},
        "format": "golden_stick_network",
    }
)
CACHE = "model.layers.0.attention.infer_attention.paged_attention_mgr"


def opened(network: Any) -> Any:
    return MindFormers().open(network, "cpu")


def test_it_is_the_network_without_a_cache(llama, tokens):
    networks = llama(), llama(**CACHED)
    weights = networks[0].parameters_dict()
    for parameter in networks[1].get_parameters():
        if parameter.name in weights:
            parameter.set_data(weights[parameter.name])
    plain, cached = map(opened, networks)
    assert plain.blocks == cached.blocks
    assert plain.layers == cached.layers
    runs = [model.block(0, (tokens, None)).run(tokens, None)["hidden"] for model in (plain, cached)]
    assert np.allclose(*runs, atol=1e-5), "rotation and attention are emulated truly"


def test_every_attention_caches_keys_and_values(llama):
    model = opened(llama("bfloat16", **CACHED))
    assert [cache.name for cache in model.caches] == [CACHE, CACHE.replace("0", "1")]
    key, value = model.caches[0].sites
    assert (key.kind, value.kind) == ("key", "value")
    assert (key.features, key.heads, key.dtype) == (32, 2, "bfloat16")
    assert opened(llama()).caches == []


def test_scales_are_those_of_the_largest_values(llama, tokens, tmp_path):
    network = llama("float32", **CACHED)
    seen: dict[str, np.ndarray] = {}
    opened(network).block(0, (tokens, None)).run(tokens, None, lambda name, x: seen.update({name: x.copy()}))
    quantize(network, KV8, tmp_path, calibration=tokens, samples=4, seq_len=24, adapter=MindFormers())
    stored = Checkpoint(tmp_path)
    for kind in ("key", "value"):
        scale = from_raw(stored[f"{CACHE}._{kind}_input_quantizer.t_scale"].read())
        assert np.allclose(scale, np.abs(seen[f"{CACHE}.{kind}"]).max(0) / 127.5, rtol=1e-6)


def test_nothing_is_written_into_the_network(llama, tokens, tmp_path):
    network = llama("float32", **CACHED)
    before = {p.name: p.asnumpy().tobytes() for p in network.get_parameters()}
    quantize(network, KV8, tmp_path, calibration=tokens, samples=4, seq_len=24, adapter=MindFormers())
    assert {p.name: p.asnumpy().tobytes() for p in network.get_parameters()} == before
    assert not any(name.endswith(("key_cache", "value_cache")) for name in Checkpoint(tmp_path).tensors)


def test_caches_may_be_quantized_after_weights(llama, tokens, tmp_path):
    from gs_mindformers import cells

    network = llama("float32", **CACHED)
    weights = Recipe.parse({"algorithms": ["rtn"], "scheme": "W8A16", "format": "golden_stick_network"})
    quantize(network, weights, tmp_path / "weights", adapter=MindFormers())
    cells.install(network, Checkpoint(tmp_path / "weights").tensors)
    first = network.model.layers[0].attention.wq
    given = {"calibration": tokens, "samples": 4, "seq_len": 24, "adapter": MindFormers()}
    quantize(network, KV8, tmp_path / "caches", **given)
    assert cells.install(network, Checkpoint(tmp_path / "caches").tensors) == []
    assert network.model.layers[0].attention.wq is first
    assert f"{CACHE}.quant_pa.k_v_scale_fusion" in network.parameters_dict()


def test_an_int8_cache_gives_back_what_was_put_in(mindspore):
    """Two samples in scattered blocks, five tokens and nine, grouped-query attention: all but for the rounding."""
    from mindformers.modules.paged_attention_mgr import PagedAttentionMgr
    from mindspore import Tensor, nn

    from gs_mindformers import cells

    class One(nn.Cell):
        def __init__(self) -> None:
            super().__init__()
            self.cache = PagedAttentionMgr(4, 16, 2, (8, 4, 2, 16), compute_dtype=mindspore.float32)

    random, network = np.random.default_rng(0), One()
    lengths, tables = np.array([5, 9], np.int32), np.array([[3, 1, 0], [7, 2, 6]], np.int32)
    key, value = (random.standard_normal((2, 9, 32)).astype(np.float32) for _ in range(2))
    slots = np.concatenate([tables[n][np.arange(9) // 4] * 4 + np.arange(9) % 4 for n in range(2)]).astype(np.int32)
    slots[5:9] = -1  # padding
    scales = [np.abs(x).max((0, 1)) / np.float32(127) for x in (key, value)]
    cells.deploy(network, {}, ["cache"])
    joint = np.stack(scales).view(np.uint32).astype(np.int64)
    for name, array in {
        "cache._key_input_quantizer.t_scale": scales[0],
        "cache._value_input_quantizer.t_scale": scales[1],
        "cache.quant_pa.k_v_scale_fusion": joint,
    }.items():
        network.parameters_dict()[name].set_data(Tensor(array))
    network.cache(Tensor(key), Tensor(value), Tensor(slots))
    query = random.standard_normal((2, 1, 64)).astype(np.float32)
    found = network.cache.paged_attn(Tensor(query), Tensor(lengths), Tensor(tables)).asnumpy()
    for sample, length in enumerate(lengths):
        heads = query[sample].reshape(4, 16)
        for head in range(4):
            k, v = (x[sample, :length].reshape(length, 2, 16)[:, head // 2] for x in (key, value))
            weights = np.exp(k @ heads[head] / 4)
            wanted = weights @ v / weights.sum()
            assert np.allclose(found[sample, 0, head * 16 : head * 16 + 16], wanted, atol=0.03)


def test_a_quantized_network_takes_its_file(llama, tokens, tmp_path):
    from gs_mindformers import cells

    recipe = KV8.model_dump(mode="json") | {"algorithms": ["rtn", "kv_cache"]}
    recipe["scheme"] |= {"weights": {"format": "int8"}}
    for dtype in ("float16", "bfloat16"):
        network, out = llama(dtype, **CACHED), tmp_path / dtype
        quantize(network, Recipe.parse(recipe), out, calibration=tokens, samples=4, seq_len=24, adapter=MindFormers())
        assert cells.install(network, Checkpoint(out).tensors) == []
        assert str(network.parameters_dict()[f"{CACHE}.key_cache"].dtype) == "Int8"


def test_on_ascend_the_fused_operators_are_called_as_they_are_declared(mindspore):
    import inspect

    from mindformers.modules.paged_attention_mgr import PagedAttentionMgr
    from mindspore import Tensor, ops

    from gs_mindformers.cells.cache import QuantizedCache

    cell = PagedAttentionMgr(4, 16, 2, (8, 4, 2, 16), compute_dtype=mindspore.float16)
    cache, called = QuantizedCache(cell), {}

    def emulated(real: type) -> Any:
        def call(*args: Any) -> Any:
            given = inspect.signature(real.__call__).bind(None, *args).arguments
            called[real.__name__] = {n: v for n, v in given.items() if n != "self"}
            return args[0]

        return call

    cache.fused = True
    cache._write = emulated(ops.auto_generate.ReshapeAndCache)
    cache._attend = emulated(ops.auto_generate.PagedAttention)
    half = np.zeros((2, 3, 32), np.float16)
    cache(Tensor(half), Tensor(half), Tensor(np.arange(6, dtype=np.int32)))
    cache.paged_attn(
        Tensor(np.zeros((2, 1, 64), np.float16)), Tensor(np.array([3, 3], np.int32)), Tensor(np.zeros((2, 1), np.int32))
    )
    written, attended = called["ReshapeAndCache"], called["PagedAttention"]
    assert [str(x.dtype) for x in written.values()] == ["Int8", "Int8", "Int8", "Int8", "Int32"]
    assert [str(x.dtype) for x in attended.values()] == ["Float16", "Int8", "Int8", "Int32", "Int32", "Int64", "Int32"]
    assert attended["antiquant_scale"].shape == attended["antiquant_offset"].shape == (2, 32)
