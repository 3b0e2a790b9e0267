"""A mixture's experts are ordinary layers by their names in the checkpoint, though the module fuses them."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from gs_core import CheckpointError, numerics, quantize
from gs_schemas import Recipe

EXPERTS, NAMES = (
    8,
    {"mixtral": ("block_sparse_moe", "w1", "w3", "w2"), "qwen3_moe": ("mlp", "gate_proj", "up_proj", "down_proj")},
)
RECIPE = Recipe.parse(
    {
        "scheme": {
            "weights": {"format": "int4", "granularity": "group", "group_size": 32},
            "inputs": {"format": "int8", "granularity": "token", "dynamic": True},
        },
        "algorithms": ["levelling", "rounding"],
        "format": "plain",
    },
    "test",
)


def expert_layers(family: str, block: int) -> list[str]:
    """In the order of execution: one expert after another."""
    parent, gate, up, down = NAMES[family]
    return [f"model.layers.{block}.{parent}.experts.{e}.{n}" for e in range(EXPERTS) for n in (gate, up, down)]


def tensors(folder) -> dict[str, torch.Tensor]:
    return {name: tensor for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.fixture(params=NAMES)
def family(request) -> str:
    return request.param


def test_experts_are_layers_by_their_names_in_the_checkpoint(saved, opened, family):
    folder = saved(family)
    model = opened(folder)
    assert [layer.name for layer in model.layers if "experts" in layer.name] == [
        name for block in range(3) for name in expert_layers(family, block)
    ]
    stored = tensors(folder)
    block = model.block(1, None)
    for name in expert_layers(family, 1):
        assert torch.equal(block.layers[name].weight(), stored[f"{name}.weight"])


def test_a_loaded_block_holds_each_experts_own_weight(saved, opened, tokens, family):
    folder = saved(family)
    stored, block = tensors(folder), opened(folder).block(0, (tokens, None))
    for name in expert_layers(family, 0):
        assert torch.equal(block.layers[name].weight(), stored[f"{name}.weight"])


def test_an_expert_sees_the_tokens_that_are_routed_to_it(saved, opened, tokens, family):
    """Two experts for each token: together they see each twice."""
    block = opened(saved(family)).block(0, (tokens, None))
    seen: dict[str, int] = {}
    block.run(tokens, None, lambda site, x: seen.update({site: len(x)}))
    parent, gate, _, down = NAMES[family]
    for name in (gate, down):
        counts = [seen.get(f"model.layers.0.{parent}.experts.{e}.{name}.input", 0) for e in range(EXPERTS)]
        assert sum(counts) == 2 * tokens.size
    gate_and_up = block.sites[f"model.layers.0.{parent}.experts.3.{gate}.input"]
    assert [layer.rpartition(".")[2] for layer in gate_and_up.layers] == list(NAMES[family][1:3])


def test_the_router_stays_in_floating_point(saved, opened, plugins, tokens, tmp_path, family):
    folder = saved(family, "bfloat16")
    assert any(name.endswith("gate") for name in opened(folder).kept)
    quantize(folder, RECIPE, tmp_path / "out", calibration=tokens, samples=4, seq_len=24)
    router = f"model.layers.0.{NAMES[family][0]}.gate.weight"
    found, source = tensors(tmp_path / "out"), tensors(folder)
    assert found[router].dtype == torch.bfloat16 and found[router].shape == source[router].shape
    layers = {f"{name}.codes" for block in range(3) for name in expert_layers(family, block)}
    assert layers <= found.keys()


def test_an_expert_that_no_token_reached_is_reported_and_rounded_from_its_weight(
    saved, plugins, tokens, tmp_path, family
):
    """Two tokens reach four experts of eight at most."""
    folder, few = saved(family), tokens[:1, :2]
    report = quantize(folder, RECIPE, tmp_path / "out", calibration=few, samples=1, seq_len=2)
    unreached = [row["layer"] for row in report.layers if not row["tokens"]]
    assert {name for name in unreached if "layers.0." in name} <= set(expert_layers(family, 0))
    assert len(unreached) >= 3 * 4 * 3
    for name in unreached:
        assert f"{name}: no calibration token reached it; quantized from its weight alone" in report.data["notes"]
    reached = [row for row in report.layers if row["tokens"]]
    assert {row["error_of"] for row in reached} == {"output"}

    found, source = tensors(tmp_path / "out"), tensors(folder)
    down = next(name for name in unreached if name.endswith(NAMES[family][3]))
    gate = down.removesuffix(NAMES[family][3]) + NAMES[family][1]
    for name in (down, gate):
        assert found[f"{name}.codes"].any() and torch.isfinite(found[f"{name}.scale"]).all()
    # Nothing is folded into the features of an unreached expert's last layer: it is the source's weight, rounded.
    wanted = numerics.quantize_weight(source[f"{down}.weight"], RECIPE.scheme.weights, "float32")
    assert torch.equal(found[f"{down}.codes"], wanted.codes)


@pytest.mark.parametrize("lost", [0, 3, 7])
def test_a_missing_expert_is_named(saved, opened, family, lost):
    """The others must not move up into its place."""
    folder, (parent, _, _, down) = saved(family), NAMES[family]
    name = f"model.layers.1.{parent}.experts.{lost}.{down}.weight"
    found = load_file(folder / "model.safetensors")
    del found[name]
    save_file(found, folder / "model.safetensors")
    with pytest.raises(CheckpointError) as error:
        opened(folder)
    assert f"7 of the 8 experts in 'model.layers.1.mlp.experts.down_proj'; there is no '{name}'" in str(error.value)


def test_experts_that_lack_one_of_their_layers(saved, opened, family):
    folder, (_, _, up, _) = saved(family), NAMES[family]
    found = {n: t for n, t in load_file(folder / "model.safetensors").items() if not n.endswith(f".{up}.weight")}
    save_file(found, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="the checkpoint has only a part of it"):
        opened(folder)


def test_an_expert_of_another_shape(saved, opened, family):
    folder, name = saved(family), f"{expert_layers(family, 2)[5]}.weight"
    found = load_file(folder / "model.safetensors")
    found[name] = found[name][:, :-1].contiguous()
    save_file(found, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"'{name}' is .* in the checkpoint"):
        opened(folder)


def test_what_is_set_is_computed_with_by_that_expert_alone(saved, opened, tokens, family):
    block = opened(saved(family)).block(0, (tokens, None))
    parent, _, _, down = NAMES[family]
    inputs: dict[str, torch.Tensor] = {}
    before = block.run(tokens, None, lambda site, x: inputs.update({site: x.clone()}))["hidden"]
    layer = block.layers[f"model.layers.0.{parent}.experts.5.{down}"]
    layer.set_weight(torch.zeros(layer.shape))
    after = block.run(tokens, None)["hidden"]
    changed = (before != after).any(-1).sum().item()
    assert changed == len(inputs[layer.site]) > 0
    assert np.isfinite(after.numpy()).all()
