"""A scale that is folded disappears: the block computes what it did, and taking it back restores every bit."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from gs_core import ChannelScale
from gs_core.arrays import to_raw
from gs_hf.probing import HFProber


def random_scale(fold) -> ChannelScale:
    generator = torch.Generator().manual_seed(len(fold.producer))
    return ChannelScale(fold, torch.exp2(4 * torch.rand(fold.channels, generator=generator) - 2))


def state(block) -> dict[str, bytes]:
    """Every tensor that the block would write, and the numbers of every parameter that it computes with."""
    found = {name: to_raw(value.float()).data.tobytes() for name, value in block.parameters.items()}
    for name, tensor in block.rest(()):
        found[f"written {name}"] = bytes(
            b"".join(bytes(piece) for piece in tensor.chunks()) if hasattr(tensor, "chunks") else tensor.data.tobytes()
        )
    return found


@pytest.fixture
def first_block(saved, opened, tokens):
    return lambda family, dtype: opened(saved(family, dtype)).block(0, (tokens, None))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama", "gemma", "qwen2", "opt", "gpt_neox", "phi", "mixtral", "qwen3_moe"])
def test_the_function_is_kept_and_undoing_restores_every_bit(first_block, tokens, family, dtype):
    """Biases are divided with the weights, a norm's ``1 + w`` is respected, a rounded norm makes up for itself."""
    block = first_block(family, dtype)
    before, bits = block.run(tokens, None)["hidden"], state(block)
    undos = []
    for fold in block.folds():
        arrived = {}
        block.run(tokens, None, lambda site, x, arrived=arrived: arrived.update({site: x.clone()}))
        applied, undo = block.apply(random_scale(fold))
        undos.append(undo)
        after = {}
        hidden = block.run(tokens, None, lambda site, x, after=after: after.update({site: x.clone()}))["hidden"]
        torch.testing.assert_close(hidden, before, rtol=0, atol=1e-5 * float(before.abs().max()))
        for site in set(fold.sites) & set(after):
            wanted = arrived[site] / applied.fold.expand(applied.scale)
            torch.testing.assert_close(after[site], wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))
    assert undos and state(block) != bits
    for undo in reversed(undos):
        undo()
    assert state(block) == bits
    assert torch.equal(block.run(tokens, None)["hidden"], before)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_the_checkpoint_still_holds_is_read_again_and_not_copied(first_block, dtype):
    block = first_block("llama", dtype)
    name = "model.layers.0.mlp.up_proj.weight"
    original, before = block.original(name), block.parameters[name].clone()
    block.parameter(name).mul_(2)
    assert torch.equal(original(), before)
    assert block.original(name) is None, "the checkpoint no longer says what it holds"
    assert block.original("model.layers.0.mlp.down_proj.weight") is not None


def described(folds) -> list[tuple]:
    index = [None if fold.index is None else fold.index.tolist() for fold in folds]
    return [(f.producer, f.sites, f.channels, i, f.head) for f, i in zip(folds, index, strict=True)]


@pytest.fixture
def second_folds(tokens, monkeypatch):
    """``(model, meanwhile)``: the folds of the second block after those of the first, described, and in how many runs
    they were found; ``meanwhile`` is called with the second block before."""

    def find(model, meanwhile=lambda block: None) -> tuple[list[tuple], int]:
        first, runs, run = model.block(0, (tokens, None)), [], HFProber.run
        previous = {name: to_raw(array) for name, array in first.run(tokens, None).items()}
        first.folds()
        second = model.block(1, (tokens, previous))
        meanwhile(second)
        monkeypatch.setattr(HFProber, "run", lambda *args, **options: (runs.append(1), run(*args, **options))[1])
        return described(second.folds()), len(runs)

    return find


@pytest.mark.parametrize("family", ["llama", "gemma", "qwen2", "opt", "gpt_neox", "phi", "mixtral", "qwen3_moe"])
def test_what_was_found_in_one_block_is_tried_at_once_in_the_next(saved, opened, second_folds, family):
    """The same is found as without it, in fewer runs."""
    folder = saved(family)
    found, runs = second_folds(opened(folder))
    forgetful = opened(folder)
    forgetful.folds.remember = lambda block, folds: None
    expected, all_runs = second_folds(forgetful)
    assert found == expected and len(found) >= 2
    assert runs < all_runs


def test_a_block_that_is_made_otherwise_is_looked_at_anew(saved, opened, second_folds):
    """Here its values take another way to o, each head's channels in reverse."""

    def reverse(block):
        block.model.folds._found = {
            name: replace(fold, index=fold.index[::-1].copy()) if fold.index is not None else fold
            for name, fold in block.model.folds._found.items()
        }

    folder = saved("llama")
    found, runs = second_folds(opened(folder), reverse)
    expected, fewer = second_folds(opened(folder))
    assert found == expected and runs > 2 * fewer


@pytest.mark.parametrize(
    ("family", "producers"),
    [
        ("opt", {"self_attn_layer_norm", "final_layer_norm", "v_proj"}),
        ("gpt_neox", {"input_layernorm", "post_attention_layernorm"}),
        ("phi", {"input_layernorm", "v_proj"}),
        ("llama", set()),
        ("qwen2", set()),
    ],
)
def test_a_shift_needs_biases_on_both_sides(first_block, family, producers):
    """A norm without a bias cannot shift (RMSNorm), nor can q, k and v make up for it where o has none (Qwen2)."""
    block = first_block(family, "float32")
    shifting = {fold.producer.rpartition(".")[2] for fold in block.folds() if fold.shifts}
    assert shifting == producers


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["opt", "gpt_neox", "phi"])
def test_a_shift_keeps_the_function_too(first_block, tokens, family, dtype):
    """A norm's bias is rounded as it is written, and the consumers make up for the shift that this leaves."""
    block = first_block(family, dtype)
    before, bits = block.run(tokens, None)["hidden"], state(block)
    for fold in [fold for fold in block.folds() if fold.shifts]:
        arrived, after = {}, {}
        block.run(tokens, None, lambda site, x, arrived=arrived: arrived.update({site: x.clone()}))
        shift = torch.randn(fold.channels, generator=torch.Generator().manual_seed(1))
        applied, undo = block.apply(ChannelScale(fold, random_scale(fold).scale, shift))
        hidden = block.run(tokens, None, lambda site, x, after=after: after.update({site: x.clone()}))["hidden"]
        torch.testing.assert_close(hidden, before, rtol=0, atol=2e-5 * float(before.abs().max()))
        torch.testing.assert_close(applied.shift, shift, rtol=0, atol=0.05)
        for site in fold.sites:
            wanted = (arrived[site] - fold.expand(applied.shift)) / fold.expand(applied.scale)
            torch.testing.assert_close(after[site], wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))
        undo()
        assert state(block) == bits


def test_a_shift_where_nothing_absorbs_it_is_an_error(first_block):
    fold = next(fold for fold in first_block("llama", "float32").folds())
    with pytest.raises(ValueError, match=r"input_layernorm → .*: not all of them have biases"):
        ChannelScale(fold, torch.ones(fold.channels), torch.ones(fold.channels))


@pytest.mark.parametrize("family", ["llama", "gemma"])
def test_a_norm_is_written_exactly_as_it_was_computed_with(first_block, family):
    """Its dtype rounds it; the consumers get the scale that was left, so that nothing is lost on the way to disk."""
    block = first_block(family, "bfloat16")
    (fold,) = (f for f in block.folds() if f.producer.endswith("input_layernorm"))
    applied, _ = block.apply(random_scale(fold))
    name = f"{fold.producer}.weight"
    written = dict(block.rest(()))[name]
    assert written.dtype == "bfloat16"
    computed = block.parameters[name]
    assert torch.equal(computed, computed.bfloat16().float())
    assert written.data.tobytes() == to_raw(computed.bfloat16()).data.tobytes()
    np.testing.assert_allclose(applied.scale, random_scale(fold).scale, rtol=2**-7)
    assert not torch.equal(applied.scale, random_scale(fold).scale)


def test_what_was_not_folded_is_written_as_the_file_holds_it(first_block):
    """Streamed from the source: not a float32 round trip."""
    block = first_block("qwen2", "bfloat16")
    source = {name: bytes(b"".join(bytes(piece) for piece in tensor.chunks())) for name, tensor in block.rest(())}
    stored = block.model.checkpoint
    assert source == {name: stored[name].read().data.tobytes() for name in source}
    assert "model.layers.0.self_attn.q_proj.bias" in source
    left = {name for name, _ in block.rest(set(block.layers))}
    assert left == {name for name in source if "norm" in name or name.endswith("bias")}
