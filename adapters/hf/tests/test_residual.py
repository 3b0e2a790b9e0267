"""Rotating the residual stream: what reads it and what writes to it is found by trying, and every block is verified."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from gs_core import ChannelScale, CheckpointError, LinearMap
from gs_core.arrays import RawTensor, from_raw
from gs_core.storage import Checkpoint
from gs_core.testing.suite import after
from gs_core.testing.transforms import random_scale, random_stream
from gs_core.verification import apply_verified
from gs_hf import residual

TOKENS = np.random.default_rng(0).integers(3, 96, (2, 24))


def losses(model) -> np.ndarray:
    batch = (TOKENS, None)
    for index in range(len(model.blocks)):
        batch = after(model.block(index, batch), batch)
    return model.losses(TOKENS, batch[1])


def outside(model) -> dict[str, np.ndarray]:
    return {n: from_raw(t if isinstance(t, RawTensor) else t.read()) for n, t in model.rest()}


@pytest.mark.parametrize("family", ["llama", "gemma", "qwen2", "mixtral", "qwen3_moe"])
def test_the_model_computes_what_it_did(saved, opened, family):
    """Norms that multiply by 1 + weight, biases, routers, and experts that not every token reaches."""
    folder = saved(family, "float32", num_hidden_layers=2)
    plain, rotated = opened(folder), opened(folder)
    rotated.rotate(random_stream(plain))
    assert np.allclose(losses(rotated), losses(plain), atol=1e-4)


def test_a_tied_head_is_written_on_its_own(saved, opened):
    """The embedding is rotated; the head is rotated and takes up the last norm: no longer one tensor."""
    folder = saved("gemma", "float32", num_hidden_layers=1)
    plain, rotated = opened(folder), opened(folder)
    assert [name for name, _ in plain.rest()] == ["model.embed_tokens.weight", "model.norm.weight"]
    rotation = random_stream(plain)
    rotated.rotate(rotation)
    assert any("lm_head.weight" in warning for warning in rotated.warnings)
    assert plain.config().get("tie_word_embeddings", True) and rotated.config()["tie_word_embeddings"] is False
    stored, written = outside(plain), outside(rotated)
    table, norm = stored["model.embed_tokens.weight"], 1 + stored["model.norm.weight"]
    assert np.allclose(written["model.embed_tokens.weight"], rotation.apply(table), atol=1e-5)
    assert np.allclose(written["lm_head.weight"], rotation.apply(table * norm), atol=1e-5)
    assert not written["model.norm.weight"].any(), "one plus nothing"


def test_embeddings_are_rotated_in_slices(saved, opened, monkeypatch):
    folder = saved("llama", "bfloat16", num_hidden_layers=1)
    monkeypatch.setattr(residual, "SLICE", 7 * 64)
    model = opened(folder)
    model.rotate(random_stream(model))
    table = dict(model.rest())["model.embed_tokens.weight"]
    pieces = list(table.chunks())
    assert [piece.nbytes for piece in pieces] == [7 * 64 * 2] * 13 + [5 * 64 * 2], "96 rows, seven at a time"
    assert b"".join(pieces) == table.read().data.tobytes()
    assert sum(piece.nbytes for piece in pieces) == table.nbytes == Checkpoint(folder)[table.name].nbytes


@pytest.mark.parametrize(
    ("family", "why"),
    [("gpt_neox", "LayerNorm. does not divide by the root mean square"), ("opt", "LayerNorm"), ("phi", "LayerNorm")],
)
def test_norms_that_subtract_the_mean_are_refused_while_planning(saved, opened, family, why):
    model = opened(saved(family, "float32"))
    with pytest.raises(ValueError, match=why):
        model.rotate(random_stream(model))


def test_a_rotation_of_another_size_is_refused(saved, opened):
    model = opened(saved("llama"))
    with pytest.raises(ValueError, match="do not divide 64"):
        model.rotate(LinearMap((np.eye(48, dtype=np.float32),), orthogonal=True))


def test_a_block_that_would_compute_something_else_is_an_error(saved, opened):
    """A norm after a layer scales channels of the stream itself, which nothing can take up."""
    model = opened(saved("llama", "float32", num_hidden_layers=1))
    norm = model.module.model.layers[0].self_attn.o_proj
    norm.register_forward_hook(lambda m, i, out: out * torch.linspace(0.5, 1.5, out.shape[-1]))
    model.rotate(random_stream(model))
    with pytest.raises(CheckpointError, match=r"would change the function .*r1: false"):
        model.block(0, (TOKENS, None))


def massive(module: torch.nn.Module, factor: float) -> None:
    """Multiply one channel of the residual stream by ``factor``. Norms scale the other channels up to compensate."""
    module.model.embed_tokens.weight.data[:, 7] *= factor
    for layer in module.model.layers:
        for norm in (layer.input_layernorm, layer.post_attention_layernorm):
            norm.weight.data *= factor
            norm.weight.data[7] /= factor


@pytest.fixture
def with_massive_channel(saved, opened, tmp_path):
    """``(factor)``: an opened Llama of two blocks in float32 with a massive channel."""
    from transformers import AutoModelForCausalLM

    def open_it(factor: float):
        folder = saved("llama", "float32", num_hidden_layers=2)
        module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        massive(module, factor)
        module.save_pretrained(tmp_path / f"massive-{factor:g}")
        return opened(tmp_path / f"massive-{factor:g}")

    return open_it


FACTORS = pytest.mark.parametrize("factor", [1.0, 1e3, 1e6])


@FACTORS
def test_a_correct_rotation_is_accepted_with_any_massive_channel(with_massive_channel, factor):
    model = with_massive_channel(factor)
    model.rotate(random_stream(model))
    losses(model)
    assert model.float64 is True


@FACTORS
@pytest.mark.parametrize("error", [1e-6, 1e-2])
def test_a_wrong_rotation_is_refused_with_any_massive_channel(with_massive_channel, factor, error, monkeypatch):
    """One row of one weight has a small error, which float32 rounding would hide."""
    model = with_massive_channel(factor)
    model.rotate(random_stream(model))
    right = residual.Residual._rewrite

    def wrong(self, block, *given):
        right(self, block, *given)
        block.parameter("model.layers.0.mlp.down_proj.weight")[3] *= 1 + error

    monkeypatch.setattr(residual.Residual, "_rewrite", wrong)
    with pytest.raises(CheckpointError, match="would change the function"):
        model.block(0, (TOKENS, None))


@FACTORS
def test_a_correct_fold_is_kept_and_a_wrong_fold_dropped_with_any_massive_channel(with_massive_channel, factor):
    block = with_massive_channel(factor).block(0, (TOKENS, None))
    fold = next(fold for fold in block.folds() if fold.producer.endswith("input_layernorm"))
    wrong = replace(fold, sites=fold.sites[:-1]) if len(fold.sites) > 1 else replace(fold, sites=())
    before = {name: value.clone() for name, value in block.parameters.items()}
    verified = apply_verified(block, [random_scale(wrong, block)], (TOKENS, None))
    assert verified.applied == [] and "would change by" in verified.dropped[0][1]
    assert all(torch.equal(value, before[name]) for name, value in block.parameters.items())
    verified = apply_verified(block, [random_scale(fold, block)], (TOKENS, None))
    assert len(verified.applied) == 1 and verified.dropped == []
    assert 0 < verified.rounding_error < 1e-5


def test_a_wrong_fold_smaller_than_float32_rounding_is_dropped(saved, opened):
    block = opened(saved("llama", "float32", num_hidden_layers=1)).block(0, (TOKENS, None))
    fold = next(fold for fold in block.folds() if fold.producer.endswith("input_layernorm"))
    scale = torch.full((fold.channels,), 1 + 2**-20)
    wrong = ChannelScale(replace(fold, sites=()), scale)
    assert apply_verified(block, [wrong], (TOKENS, None)).applied == []
    assert len(apply_verified(block, [ChannelScale(fold, scale)], (TOKENS, None)).applied) == 1


def test_the_divergence_caused_by_rounding_is_reported(saved, opened):
    model = opened(saved("llama", "float32", num_hidden_layers=2))
    model.rotate(random_stream(model))
    assert model.rotation_divergence is None
    losses(model)
    assert 0 <= abs(model.rotation_divergence) < 1e-8


def test_sandwich_norms_are_refused_while_planning(saved, opened):
    """A norm is between a layer and the stream. The model stays unchanged."""
    model = opened(saved("gemma3_text", "float32"))
    with pytest.raises(ValueError, match="sandwich norms"):
        model.rotate(random_stream(model))
    assert model.residual is None
    assert all(parameter.is_meta for parameter in model.module.parameters())


def test_config_of_a_nested_model_is_untied_everywhere():
    config = {"model_type": "a", "tie_word_embeddings": True, "text_config": {"model_type": "b", "layers": [1]}}
    untied = residual.untied(config)
    assert untied["tie_word_embeddings"] is False
    assert untied["text_config"] == {"model_type": "b", "layers": [1], "tie_word_embeddings": False}
    assert json.dumps(config).count("true") == 1, "the source's is left alone"
