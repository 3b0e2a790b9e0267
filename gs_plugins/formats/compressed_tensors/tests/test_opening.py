"""The engines that open a folder, and the entries of config.json that they need."""

import pytest

from gs_compressed_tensors.engines import dequantizes, engines
from gs_schemas import SCHEMES

LAYER, OTHER = "model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj"
EXPERT, CACHE = "model.layers.0.mlp.experts.0.up_proj", "model.layers.0.self_attn"


@pytest.mark.parametrize(
    ("scheme", "transformers", "vllm"),
    [
        ("W4A16", True, True),
        ("W4A16_ASYM", True, True),
        ("W2A16", True, False),
        ("W3A16", True, False),
        ("W8A16", True, True),
        ("W8A8", True, True),
        ("W8A8_STATIC", True, True),
        ("W4A4", True, False),
        ("KV8", True, False),
        ("KV_FP8", True, True),
    ],
)
def test_engines_that_open_a_scheme(scheme, transformers, vllm):
    found = engines({LAYER: SCHEMES[scheme]}, online=False)
    assert [engine.opens for engine in found] == [transformers, vllm]
    assert all(engine.note for engine in found if not engine.opens), "a refusal has a reason"


def test_no_engine_computes_online_transforms():
    assert not any(engine.opens for engine in engines({LAYER: SCHEMES["W4A4"]}, online=True))


def test_zero_points_are_dequantized_only_if_all_layers_share_one_scheme():
    asymmetric = SCHEMES["W4A16_ASYM"]
    assert dequantizes({LAYER: asymmetric, OTHER: asymmetric.model_copy(update={"name": None})})
    assert not dequantizes({LAYER: SCHEMES["W4A16"]})
    for name, scheme in {OTHER: SCHEMES["W8A16"], CACHE: SCHEMES["KV_FP8"], EXPERT: asymmetric}.items():
        schemes = {LAYER: asymmetric, name: scheme}
        assert not dequantizes(schemes)
        assert [engine.opens for engine in engines(schemes, online=False)] == [False, True]
