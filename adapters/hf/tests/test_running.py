"""A block at a time computes what the whole model computes, with one block's weights in memory."""

import numpy as np
import pytest
import torch
import transformers

from gs_core.arrays import to_raw

FAMILIES = ["llama", "gemma", "qwen2", "opt", "gpt_neox", "phi", "mixtral", "qwen3_moe"]


def whole_run(folder, tokens: np.ndarray) -> tuple[list[torch.Tensor], torch.Tensor]:
    """What each decoder block of transformers' own model returns, and the next-token losses."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, experts_implementation="eager"
    ).eval()
    blocks = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == 3)
    seen: list[torch.Tensor] = []
    for block in blocks:
        block.register_forward_hook(lambda m, x, out: seen.append((out if torch.is_tensor(out) else out[0]).clone()))
    ids = torch.from_numpy(tokens)
    with torch.no_grad():
        logits = model(ids, use_cache=False).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    return seen, losses.reshape(len(tokens), -1)


def each_block(model, tokens: np.ndarray):
    """Run block after block as the line does: what one returns goes through a file's bytes to the next."""
    previous = None
    for index in range(len(model.blocks)):
        outputs = model.block(index, (tokens, previous)).run(tokens, previous)
        yield outputs["hidden"]
        previous = {name: to_raw(array) for name, array in outputs.items()}
    model.last = previous


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_are_those_of_the_whole_model_to_the_bit(saved, opened, tokens, family):
    folder = saved(family)
    expected, losses = whole_run(folder, tokens)
    model = opened(folder)
    for index, hidden in enumerate(each_block(model, tokens)):
        assert torch.equal(hidden, expected[index]), model.blocks[index]
    np.testing.assert_allclose(model.losses(tokens, model.last), losses.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_checkpoint_in_half_precision_is_computed_in_float32(saved, opened, tokens, dtype):
    folder = saved("llama", dtype)
    expected, _ = whole_run(folder, tokens)
    for index, hidden in enumerate(each_block(opened(folder), tokens)):
        assert hidden.dtype == torch.float32 and torch.equal(hidden, expected[index])


def test_products_are_in_the_stored_dtype_while_they_need_not_be_exact(saved, opened, tokens, monkeypatch):
    """Only the products: what they give, and all between them, is float32 again."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    block = opened(saved("llama", "bfloat16")).block(0, (tokens, None))
    arrived: dict[str, torch.Tensor] = {}

    def hidden() -> torch.Tensor:
        return block.run(tokens, None, arrived.__setitem__)["hidden"]

    exact = hidden()
    with block.computing(exact=False):
        found = hidden()
    assert found.dtype == torch.float32 and all(x.dtype == torch.float32 for x in arrived.values())
    assert 0 < (found - exact).norm() / exact.norm() < 2**-6
    assert torch.equal(hidden(), exact)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("native", [True, False])
def test_a_matrix_stays_as_it_is_stored_until_something_is_written_into_it(
    saved, opened, tokens, monkeypatch, family, native
):
    """That of a linear layer: what the numbers are, and what is computed from them, stays the same to the bit, whether
    products are computed in that dtype or in float32."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    block = opened(saved(family, "bfloat16")).block(0, (tokens, None))
    narrow = {name for name, value in block.parameters.items() if value.dtype == torch.bfloat16}
    assert narrow and all(block.parameters[name].ndim == 2 for name in narrow)
    with block.computing(exact=False):
        before = block.run(tokens, None, lambda site, x: None)["hidden"]
        layer = next(n for n in block.layers if block.model.found.places[n][0].parameter in narrow)
        parameter, weight = block.model.found.places[layer][0].parameter, block.layers[layer].weight()
        block.layers[layer].set_weight(weight)
        assert block.parameters[parameter].dtype == torch.float32
        assert {name for name, value in block.parameters.items() if value.dtype == torch.bfloat16} == narrow - {
            parameter
        }
        assert torch.equal(block.layers[layer].weight(), weight)
        assert torch.equal(block.run(tokens, None, lambda site, x: None)["hidden"], before)
        block.layers[layer].set_weight(weight * (1 + 2**-12))  # which bfloat16 could not say
    assert torch.equal(block.layers[layer].weight(), weight * (1 + 2**-12))


@pytest.mark.parametrize(("dtype", "native"), [("float16", True), ("float32", True), ("bfloat16", False)])
def test_products_stay_in_float32_where_the_stored_dtype_is_not_faster(
    saved, opened, tokens, monkeypatch, dtype, native
):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    block = opened(saved("llama", dtype)).block(0, (tokens, None))
    exact = block.run(tokens, None, lambda name, x: None)["hidden"]
    with block.computing(exact=False):
        assert torch.equal(block.run(tokens, None, lambda name, x: None)["hidden"], exact)


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_only_one_blocks_weights_are_ever_in_memory(saved, opened, tokens, family):
    """Checked at every site of every block, while it runs, and while folds are tried."""
    model = opened(saved(family))

    def materialised() -> set[str]:
        return {
            name.split("layers.")[1].partition(".")[0]
            for name, parameter in model.module.named_parameters()
            if "layers." in name and not parameter.is_meta
        }

    assert materialised() == set()
    previous = None
    for index in range(len(model.blocks)):
        block, seen = model.block(index, (tokens, previous)), []
        outputs = block.run(tokens, previous, lambda site, x, seen=seen: seen.append(materialised()))
        assert len(seen) >= 4 and all(there == {str(index)} for there in seen)
        block.folds()
        assert materialised() == {str(index)}
        previous = {name: to_raw(array) for name, array in outputs.items()}


def test_a_block_that_will_not_run_loads_nothing_until_a_weight_is_asked_for(saved, opened):
    model = opened(saved("llama"))
    block = model.block(1, None)
    layer = block.layers["model.layers.1.mlp.up_proj"]
    assert layer.weight().shape == (96, 64)
    assert all(parameter.is_meta for parameter in model.module.parameters())


@pytest.mark.parametrize("rows", [1, 3])
def test_a_batch_may_have_any_size(saved, opened, tokens, rows):
    """One whose rows are as many as its columns, too: nothing may be told apart by its length."""
    square = np.resize(tokens, (rows, rows)) if rows > 1 else tokens[:1]
    folder = saved("llama")
    expected, _ = whole_run(folder, square)
    for index, hidden in enumerate(each_block(opened(folder), square)):
        assert torch.equal(hidden, expected[index])
