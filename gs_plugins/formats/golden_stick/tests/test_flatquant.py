"""FlatQuant's layers in msModelSlim's folder: as it writes them, and as vLLM-Ascend computes them."""

from pathlib import Path

import numpy as np
import pytest

from gs_core import CheckpointError, LayerInfo, LinearMap, QuantizationArgs, QuantizationScheme, numerics
from gs_core.arrays import from_raw, to_raw
from gs_core.interfaces import Finished
from gs_core.storage import SINGLE, Checkpoint, write_json, write_safetensors
from gs_golden_stick import Ascend, flatquant
from gs_schemas import SCHEMES

GOLDEN = Path(__file__).parent / "golden"
W4A4 = QuantizationScheme(
    weights=QuantizationArgs(format="int4", granularity="channel"),
    inputs=QuantizationArgs(format="int4", granularity="token", dynamic=True),
)
LAYER = "model.layers.0.mlp.down_proj"


def layer(name: str, features: int) -> LayerInfo:
    return LayerInfo(f"model.layers.0.{name}", 0, (64, features), "site", "bfloat16")


def random_map(left: int, right: int, keep: float = 1.0) -> LinearMap:
    random = np.random.default_rng(left)
    return LinearMap(tuple(random.standard_normal((n, n)).astype(np.float32) for n in (left, right)), keep=keep)


# --- msModelSlim's own -------------------------------------------------------------------------------------------


def test_the_transforms_of_msmodelslim_are_undone_by_its_weights():
    """``W · (L⁻ᵀ ⊗ R⁻ᵀ)``, rounded to four bits, times ``(L ⊗ R)ᵀ`` is W again; the other way round nothing is.
    (The rows of v_proj are mixed too, for the layer that takes the values.)"""
    checkpoint, numbers = Ascend().read(Checkpoint(GOLDEN / "msmodelslim_w4a4_flatquant"), {})
    model = Checkpoint(GOLDEN / "qwen3")
    assert {name.rpartition(".")[2] for name in numbers} == {"q_proj", "k_proj", "v_proj", "down_proj"}
    for name in set(numbers) - {"model.layers.0.self_attn.v_proj"}:
        original = from_raw(model[f"{name}.weight"].read()).astype(np.float32)
        weight, online = from_raw(checkpoint[f"{name}.weight"].read()), numbers[name].online
        assert online.keep == pytest.approx(0.98201376 * 15 / 14)

        def distance(matrix, weight=weight, original=original):
            return np.linalg.norm(weight @ matrix - original) / np.linalg.norm(original)

        dense = online.dense(original.shape[1])
        assert distance(dense.T) < 0.13 < 1 < distance(dense)


def test_ours_is_laid_out_as_msmodelslims():
    stored = Checkpoint(GOLDEN / "msmodelslim_w4a4_flatquant")
    _, numbers = Ascend().read(stored, {})
    for name, of in numbers.items():
        weight = np.zeros(stored[f"{name}.weight"].shape, np.float32)
        tensor = numerics.quantize_weight(weight, of.scheme.weights, "bfloat16")
        arrays = Ascend().pack(tensor=tensor, inputs=None, layout=Ascend().layout(of.scheme), online=of.online)
        ours = {f"{name}.{suffix}": to_raw(array) for suffix, array in arrays.items()}
        assert {n: (t.dtype, t.shape) for n, t in ours.items()} == {
            n: (t.dtype, t.shape) for n, t in stored.tensors.items() if n.startswith(f"{name}.")
        }
        for part in flatquant.PARTS:
            assert ours[f"{name}.{part}"].data.tobytes() == stored[f"{name}.{part}"].read().data.tobytes()


# --- what is read is what the engine computes ----------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """A folder with one layer of 64 by 96 features behind a map that keeps 0.8 of a token's range."""
    online = random_map(6, 16, 0.8)
    weight = np.random.default_rng(0).standard_normal((64, 96)).astype(np.float32)
    tensor = numerics.quantize_weight(weight, W4A4.weights, "bfloat16")
    arrays = Ascend().pack(tensor=tensor, inputs=None, layout="W4A4_DYNAMIC", online=online)
    tensors = {f"{LAYER}.{suffix}": array for suffix, array in arrays.items()}
    write_safetensors(tmp_path / SINGLE, tensors.items())
    shards = {SINGLE: dict.fromkeys(tensors, 0)}
    final = Finished({}, {LAYER: W4A4}, [], [], shards, {}, online={LAYER: online.describe()})
    write_json(tmp_path / Ascend.description, Ascend().describe(final))
    return tmp_path


def test_a_token_is_mapped_clipped_and_multiplied_as_vllm_ascend_does(folder):
    """``npu_kronecker_quant`` (CANN 8.5) of ``(tokens, l, r)`` with ``leftᵀ`` and ``right``, then
    ``npu_quant_matmul``, both by their documents."""
    stored = {n.removeprefix(f"{LAYER}."): from_raw(t.read()) for n, t in Checkpoint(folder).tensors.items()}
    x = np.random.default_rng(1).standard_normal((50, 96)).astype(np.float32)
    tiles = stored["left_trans"].T @ (x.reshape(50, 6, 16) @ stored["right_trans"])
    scale = np.abs(tiles).max((1, 2)) * stored["clip_ratio"] / 7
    codes = np.clip(np.round(tiles / scale[:, None, None]), -8, 7).reshape(50, 96)
    theirs = (codes @ stored["weight"].astype(np.float32).T) * stored["weight_scale"].reshape(-1) * scale[:, None]

    checkpoint, numbers = Ascend().read(Checkpoint(folder), {})
    of = numbers[LAYER]
    seen = numerics.fake_quantize(of.online.apply(x), of.scheme.inputs, keep=of.online.keep)
    ours = seen @ from_raw(checkpoint[f"{LAYER}.weight"].read()).T
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3 * np.abs(theirs).max())


def test_its_tensors_have_its_type(folder):
    description = Ascend().describe(
        Finished({}, {LAYER: W4A4, "other": W4A4}, [], [], {"f": {f"{LAYER}.left_trans": 0, "other.weight": 0}}, {},
                 online={LAYER: {}})
    )  # fmt: skip
    assert description[f"{LAYER}.left_trans"] == "W4A4_FLATQUANT_DYNAMIC"
    assert description["other.weight"] == description["model_quant_type"] == "W4A4_DYNAMIC"


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("left_trans", np.ones((6, 5), np.float32), "left_trans has shape"),
        ("right_trans", np.ones((5, 5), np.float32), "whose product divides 96"),
        ("clip_ratio", np.zeros(1, np.float32), "no part of a range"),
        ("clip_ratio", np.ones(2, np.float32), "clip_ratio has shape"),
        ("left_trans", None, "no left_trans, which W4A4_FLATQUANT_DYNAMIC needs"),
    ],
)
def test_transforms_that_do_not_fit(folder, part, value, message):
    tensors = {n: from_raw(t.read()) for n, t in Checkpoint(folder).tensors.items()} | {f"{LAYER}.{part}": value}
    write_safetensors(folder / SINGLE, [(n, t) for n, t in tensors.items() if t is not None])
    with pytest.raises(CheckpointError, match=message):
        Ascend().read(Checkpoint(folder), {})


# --- what is held ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("features", "expected"),
    [(4096, (64, 64)), (11008, (86, 128)), (18944, (128, 148)), (1332, (18, 74)), (1334, None)],
)
def test_the_factors_that_the_loader_allots(features, expected):
    assert flatquant.sizes(features) == expected


@pytest.mark.parametrize(
    ("name", "features", "factors", "why"),
    [
        ("self_attn.q_proj", 4096, (64, 64), None),
        ("self_attn.o_proj", 4096, (64, 64), None),
        ("mlp.down_proj", 11008, (86, 128), None),
        ("self_attn.o_proj", 4096, (32, 128), "factors 4096 features as 64 · 64, not as 32 · 128"),
        ("mlp.down_proj", 18944, (128, 148), "a multiple of 8, not 128 · 148"),
        ("mlp.down_proj", 18944, (148, 128), "as 128 · 148, not as 148 · 128"),
        ("mlp.up_proj", 262144, (512, 512), "factors up to 256"),
        ("mlp.up_proj", 1334, (23, 58), "not at all, not as 23 · 58"),
        ("mlp.up_proj", 4096, (16, 8, 32), "not as 16 · 8 · 32"),
        ("mlp.experts.3.up_proj", 4096, (64, 64), "no inputs of experts"),
        ("mlp.down_proj", 8192, (64, 64), None),
        ("mlp.up_proj", 8192, (64, 64), "as 64 · 128, not as 64 · 64"),
    ],
)
def test_the_maps_that_the_kernel_and_the_loader_take(name, features, factors, why):
    """A layer whose input features are divided among devices may have a map for each part."""
    map = LinearMap(tuple(np.eye(n, dtype=np.float32) for n in factors))
    found = Ascend().unsupported_map(map, layer(name, features), W4A4)
    assert found is None if why is None else why in (found or "")


def test_only_four_bits_are_mapped():
    assert Ascend().unsupported_online("kronecker", W4A4) is None
    assert Ascend().unsupported_online("clipped", W4A4) is None
    assert "not of W8A8_DYNAMIC" in (Ascend().unsupported_online("kronecker", SCHEMES["W8A8"]) or "")
    assert "holds no rotation map" in (Ascend().unsupported_online("rotation", W4A4) or "")
    scaled = LinearMap(random_map(8, 8).factors, np.ones(64, np.float32))
    assert Ascend().unsupported_map(scaled, layer("mlp.up_proj", 64), W4A4)
