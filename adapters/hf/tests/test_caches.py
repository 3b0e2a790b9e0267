"""What attention caches is found through the Cache API, with no code naming a model."""

import numpy as np
import pytest
import torch
import transformers
from transformers import DynamicCache

from gs_core import PlanError, evaluate, quantize
from gs_core.api import plan
from gs_core.testing.plugins import Caching
from gs_schemas import Recipe

INT8 = {"format": "int8", "granularity": "head"}


def kinds(cache):
    return [site.kind for site in cache.sites]


@pytest.fixture
def small(tmp_path):
    """``(class name, **config)``: the folder of a model of random weights."""

    def save(name, **config):
        torch.manual_seed(0)
        common = {"vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 2, "pad_token_id": 0}
        made = getattr(transformers, f"{name}Config")(**common | config)
        getattr(transformers, f"{name}ForCausalLM")(made).save_pretrained(tmp_path / name)
        return tmp_path / name

    return save


@pytest.mark.parametrize(
    ("family", "name", "heads", "features"),
    [
        ("llama", "model.layers.{}.self_attn", 2, 32),
        ("opt", "model.decoder.layers.{}.self_attn", 4, 64),
        ("phi", "model.layers.{}.self_attn", 4, 64),
        ("mixtral", "model.layers.{}.self_attn", 2, 32),
    ],
)
def test_each_attention_module_has_a_cache(saved, opened, family, name, heads, features):
    model = opened(saved(family, "bfloat16"))
    assert [cache.name for cache in model.caches] == [name.format(block) for block in range(3)]
    assert [cache.block for cache in model.caches] == [0, 1, 2]
    for cache in model.caches:
        assert kinds(cache) == ["unrotated_key", "key", "value"]
        assert {(s.heads, s.features, s.layers, s.dtype) for s in cache.sites} == {(heads, features, (), "bfloat16")}


def test_keys_are_seen_as_transformers_own_cache_keeps_them(build, opened, tokens):
    live = build("llama")
    kept = DynamicCache(config=live.config)
    with torch.no_grad():
        live(torch.from_numpy(tokens), past_key_values=kept, use_cache=True)
    seen = {}
    opened(live).block(0, (tokens, None)).run(tokens, None, lambda name, x: seen.update({name: x.clone()}))
    for kind, wanted in (("key", kept.layers[0].keys), ("value", kept.layers[0].values)):
        by_token = wanted.transpose(1, 2).reshape(-1, 32)
        assert torch.equal(seen[f"model.layers.0.self_attn.{kind}"], by_token), kind


def test_a_rotation_keeps_the_length_of_every_key(saved, opened, tokens):
    """And changes the key, but for that of the first token."""
    seen = {}
    block = opened(saved("llama")).block(0, (tokens, None))
    block.run(tokens, None, lambda name, x: seen.update({name: x.clone()}))
    before, after = (
        seen[f"model.layers.0.self_attn.{kind}"].reshape(*tokens.shape, 2, 16) for kind in ("unrotated_key", "key")
    )
    torch.testing.assert_close(before.norm(dim=-1), after.norm(dim=-1))
    torch.testing.assert_close(before[:, 0], after[:, 0])
    assert not torch.allclose(before[:, 1:], after[:, 1:], rtol=0.1)


def test_a_product_that_makes_more_than_keys_is_no_key(saved, opened):
    for cache in opened(saved("gpt_neox")).caches:
        assert kinds(cache) == ["key", "value"]
        assert cache.rotated_only == f"{cache.name}.query_key_value makes more than the keys"


def test_a_norm_of_keys_and_a_window_are_the_models_own_business(small, opened, tokens):
    window = {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 0}
    folder = small(
        "Qwen3",
        **window,
        intermediate_size=96,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
    )
    model = opened(folder)
    assert [kinds(cache) for cache in model.caches] == [["unrotated_key", "key", "value"]] * 2
    block = model.block(0, (tokens, None))
    plain, listened = block.run(tokens, None), block.run(tokens, None, lambda name, x: x.clone())
    assert torch.equal(plain["hidden"], listened["hidden"])


def test_latents_are_not_keys(small, opened):
    sizes = {"kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16}
    model = opened(small("DeepseekV3", **sizes, intermediate_size=96, num_attention_heads=4, first_k_dense_replace=2))
    assert list(model.caches) == []
    assert model.uncached == ("model.layers.0.self_attn caches what another layer makes keys and values of, not them")


@pytest.mark.usefixtures("plugins")
def test_a_model_without_attention_is_told_so(small):
    folder = small("Mamba", state_size=8, intermediate_size=128, time_step_rank=8)
    with pytest.raises(PlanError, match="there is no KV cache to quantize: no attention of this model hands keys"):
        plan(folder, Recipe.parse({"scheme": {"kv_cache": INT8}, "algorithms": ["caching"], "format": "plain"}))


def test_a_module_of_ones_own_has_no_cache(opened):
    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = torch.nn.Embedding(96, 64), torch.nn.Linear(64, 96)
            self.layers = torch.nn.ModuleList([torch.nn.Linear(64, 64)])

        def get_input_embeddings(self):
            return self.embed

        def forward(self, ids):
            return self.head(self.layers[0](self.embed(ids)))

    model = opened(Own().eval())
    assert model.caches == []
    assert model.uncached == "Own is no transformers model, whose caches can be listened to"


@pytest.mark.usefixtures("plugins")
@pytest.mark.parametrize("key", ["key", "unrotated_key"])
def test_a_quantized_cache_is_the_only_difference(saved, tokens, tmp_path, monkeypatch, key):
    """Fine numbers change next to nothing, coarse ones a lot: the cache is computed with, where it was asked for."""
    monkeypatch.setattr(Caching, "kinds", (key, "value"))
    folder, found = saved("llama"), {}
    found["float"] = evaluate(folder, tokens, seq_len=24, windows=4).perplexity
    for number in ("int8", "int2"):
        args = {"format": number, "granularity": "token", "dynamic": True}
        recipe = Recipe.parse({"scheme": {"kv_cache": args}, "algorithms": ["caching"], "format": "plain"})
        report = quantize(folder, recipe, tmp_path / number)
        assert {row["of"] for row in report.data["caches"]} == {key, "value"}
        found[number] = evaluate(tmp_path / number, tokens, seq_len=24, windows=4).perplexity
    assert found["int8"] == pytest.approx(found["float"], rel=2e-3)
    assert found["int8"] != found["float"]
    assert abs(found["int2"] / found["float"] - 1) > 5 * abs(found["int8"] / found["float"] - 1)


def test_float_perplexity_is_the_models_own(saved, build, tokens):
    """With listeners at every site, caches among them, nothing of masks or positions changes."""
    ids = torch.from_numpy(tokens)
    with torch.no_grad():
        logits = build("llama")(ids).logits
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    found = evaluate(saved("llama"), tokens, seq_len=24, windows=4).perplexity
    assert found == pytest.approx(float(np.exp(float(loss))), rel=1e-6)
