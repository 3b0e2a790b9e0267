"""Hugging Face's names and MindFormers', one to one."""

import pytest

from gs_mindformers.names import INSIDE, OUTSIDE, to_huggingface, to_mindformers

PAIRS = {
    "model.embed_tokens.weight": "model.tok_embeddings.embedding_weight",
    "model.layers.10.self_attn.q_proj.weight": "model.layers.10.attention.wq.weight",
    "model.layers.0.self_attn.k_proj.bias": "model.layers.0.attention.wk.bias",
    "model.layers.0.mlp.gate_proj.weight": "model.layers.0.feed_forward.w1.weight",
    "model.layers.0.mlp.up_proj.weight_scale": "model.layers.0.feed_forward.w3.weight_scale",
    "model.layers.0.mlp.down_proj": "model.layers.0.feed_forward.w2",
    "model.layers.0.post_attention_layernorm.weight": "model.layers.0.ffn_norm.weight",
    "model.norm.weight": "model.norm_out.weight",
    "lm_head.weight": "lm_head.weight",
}


@pytest.mark.parametrize(("theirs", "ours"), PAIRS.items())
def test_a_name_goes_over_and_back(theirs, ours):
    assert to_mindformers(theirs) == ours
    assert to_huggingface(ours) == theirs


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.q_norm.weight", "visual.proj.weight", "model.layers.0"])
def test_an_unknown_name_stays_as_it_is(name):
    assert to_mindformers(name) == to_huggingface(name) == name


def test_no_two_names_become_one():
    for table in (INSIDE, OUTSIDE):
        assert len(set(table.values())) == len(table)


@pytest.mark.parametrize("name", [*PAIRS.values()])
def test_a_mindformers_name_is_left_alone(name):
    assert to_mindformers(name) == name
