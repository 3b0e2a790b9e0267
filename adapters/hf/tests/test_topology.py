"""Sites and folds are found by watching: which layers share an input, and what produced it."""

import numpy as np
import pytest

FUSED = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]
LLAMA = [FUSED, ["self_attn.o_proj"], ["mlp.gate_proj", "mlp.up_proj"], ["mlp.down_proj"]]
LLAMA_FOLDS = {
    "input_layernorm": "self_attn.q_proj",
    "self_attn.v_proj": "self_attn.o_proj",
    "post_attention_layernorm": "mlp.gate_proj",
    "mlp.up_proj": "mlp.down_proj",
}


def inside(name: str) -> str:
    """A name without the block's."""
    return name.split("layers.0.", 1)[1]


@pytest.fixture
def first_block(saved, opened, tokens):
    return lambda family, **changes: opened(saved(family, **changes)).block(0, (tokens, None))


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("llama", LLAMA),
        ("gemma", LLAMA),
        ("qwen2", LLAMA),
        ("opt", [FUSED, ["self_attn.out_proj"], ["fc1"], ["fc2"]]),
        (
            "gpt_neox",
            [["attention.query_key_value"], ["attention.dense"], ["mlp.dense_h_to_4h"], ["mlp.dense_4h_to_h"]],
        ),
        # attention and feed-forward network read one norm
        ("phi", [[*FUSED, "mlp.fc1"], ["self_attn.dense"], ["mlp.fc2"]]),
    ],
)
def test_layers_that_receive_one_tensor_share_a_site(first_block, family, expected):
    block = first_block(family)
    fed = [site.layers for site in block.sites.values() if site.kind == "input"]
    assert [[inside(layer) for layer in layers] for layers in fed] == expected
    assert [inside(name) for name in block.layers] == [layer for site in expected for layer in site]


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("llama", LLAMA_FOLDS),
        ("gemma", LLAMA_FOLDS),
        ("qwen2", LLAMA_FOLDS),
        (
            "opt",
            {
                "self_attn_layer_norm": "self_attn.q_proj",
                "self_attn.v_proj": "self_attn.out_proj",
                "final_layer_norm": "fc1",
                "fc1": "fc2",  # a ReLU lets a positive factor through
            },
        ),
        # gelu lets none through, and v is a part of query_key_value
        ("gpt_neox", {"input_layernorm": "attention.query_key_value", "post_attention_layernorm": "mlp.dense_h_to_4h"}),
        ("phi", {"input_layernorm": "self_attn.q_proj", "self_attn.v_proj": "self_attn.dense"}),
    ],
)
def test_what_produces_a_site_is_found(first_block, family, expected):
    folds = first_block(family).folds()
    assert {inside(fold.producer): [inside(site) for site in fold.sites] for fold in folds} == {
        producer: [f"{layer}.input"] for producer, layer in expected.items()
    }


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (4, 1)])
def test_the_channels_of_values_are_followed_through_grouped_heads(first_block, heads, kv_heads):
    """Head ``h`` of o's input reads head ``h // (heads / kv_heads)`` of v."""
    folds = first_block("llama", num_attention_heads=heads, num_key_value_heads=kv_heads).folds()
    (fold,) = (fold for fold in folds if fold.producer.endswith("v_proj"))
    channel = np.arange(heads * 16)
    expected = channel // 16 * kv_heads // heads * 16 + channel % 16
    assert fold.channels == kv_heads * 16
    np.testing.assert_array_equal(np.arange(64) if fold.index is None else fold.index, expected)


def test_a_norm_whose_output_goes_elsewhere_too_is_no_fold(saved, opened, tokens):
    """A scale on it would change what is added to the residual stream."""
    model = opened(saved("llama"))
    for layer in model.module.model.layers:
        layer.mlp.forward = lambda x, mlp=layer.mlp: type(mlp).forward(mlp, x) + 0.1 * x
    producers = [inside(fold.producer) for fold in model.block(0, (tokens, None)).folds()]
    assert producers == ["input_layernorm", "self_attn.v_proj", "mlp.up_proj"]


def test_a_layer_knows_its_shape_its_block_and_its_dtype(saved, opened):
    layers = {layer.name: layer for layer in opened(saved("llama", "bfloat16")).layers}
    down = layers["model.layers.2.mlp.down_proj"]
    assert (down.block, down.shape, down.dtype) == (2, (64, 96), "bfloat16")
    assert down.site == "model.layers.2.mlp.down_proj.input"
    assert len(layers) == 3 * 7


def test_what_is_not_quantized_is_listed_with_the_reason(saved, opened):
    assert opened(saved("llama")).kept == {"lm_head": "outside the decoder blocks"}
