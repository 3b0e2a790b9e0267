"""Models for tests: a real Llama from the package index, and a random model of Gemma 3's shape."""

import pytest

from gs_core import evaluate


def test_smollm2_from_the_package_index_is_the_model_that_was_published(smollm2, data):
    found = evaluate(smollm2, data.evaluation, seq_len=512, windows=32)
    assert found.perplexity == pytest.approx(9.31, abs=0.01)


def test_the_gemma_shaped_model_has_massive_activations(gemma_shaped, data):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = (c.from_pretrained(gemma_shaped) for c in (AutoTokenizer, AutoModelForCausalLM))
    ids = tokenizer(data.evaluation.read_text(encoding="utf-8")[:2000], return_tensors="pt").input_ids[:, :256]
    with torch.no_grad():
        states = model(ids, output_hidden_states=True).hidden_states
    magnitudes = states[-2][0].float().abs()
    assert magnitudes.max() > 200 * magnitudes.median()
