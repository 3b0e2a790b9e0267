"""A live network: left as it was, its layers found whatever holds them, and said what cannot be taken."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from gs_core import PlanError, quantize
from gs_core.arrays import from_raw
from gs_core.storage import Checkpoint
from gs_mindformers import MindFormers
from gs_schemas import Recipe

pytestmark = pytest.mark.lane

W8 = {"weights": {"format": "int8"}}
RTN = Recipe.parse({"algorithms": ["rtn"], "scheme": W8})
GPTQ = Recipe.parse({"algorithms": ["gptq"], "scheme": W8})


def opened(network: Any, *block_types: str) -> Any:
    return MindFormers(block_types).open(network, "cpu")


def state(network: Any) -> dict[str, Any]:
    """Everything that a run could have changed: attributes and parameters of every cell, bit for bit."""
    found: dict[str, Any] = {}
    for path, cell in network.cells_and_names():
        found |= {f"{path}:{n}": id(v) for n, v in cell.__dict__.items() if not n.startswith("_")}
        found |= {f"{path}:{n}": (id(p), p.asnumpy().tobytes()) for n, p in cell._params.items() if p is not None}
    return found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_network_is_as_it_was(llama, tokens, tmp_path, dtype):
    network = llama(dtype)
    network.set_train(True)
    before = state(network)
    quantize(network, GPTQ, tmp_path, calibration=tokens, samples=4, seq_len=24, adapter=MindFormers())
    assert state(network) == before


def test_it_is_as_it_was_after_an_error(llama, tokens, tmp_path):
    network = llama()
    before = state(network)

    def explode(name: str, x: Any) -> None:
        raise KeyboardInterrupt

    block = opened(network).block(0, (tokens, None))
    with pytest.raises(KeyboardInterrupt):
        block.run(tokens, None, explode)
    assert state(network) == before


def test_bfloat16_is_computed_as_float32_on_the_same_numbers(llama, mindspore, tokens):
    narrow, wide = llama("bfloat16"), llama("float32")
    for target, source in zip(wide.get_parameters(), narrow.get_parameters(), strict=True):
        target.set_data(mindspore.Tensor(source.asnumpy().astype(np.float32)))
    runs = [opened(network).block(0, (tokens, None)).run(tokens, None)["hidden"] for network in (narrow, wide)]
    assert np.array_equal(*runs)


def test_layers_are_those_of_every_kind_and_of_subclasses(network, networks):
    model = opened(network("mixed"))
    assert [info.name for info in model.layers if info.block == 0] == [
        f"layers.0.{name}" for name in ("q", "k", "v", "o", "gate", "up", "down")
    ]
    assert model.kept == {
        "embedding.embedding_table": "a bare matrix of Embedding, not a linear layer",
        "head": "outside the decoder blocks",
    }


def test_fused_layers_are_one_with_all_rows(network, networks):
    model = opened(network("fused"))
    shapes = {info.name: info.shape for info in model.layers if info.block == 0}
    assert shapes == {
        "layers.0.linear_qkv": (3 * networks.HIDDEN, networks.HIDDEN),
        "layers.0.linear_proj": (networks.HIDDEN, networks.HIDDEN),
        "layers.0.linear_fc1": (2 * networks.INNER, networks.HIDDEN),
        "layers.0.linear_fc2": (networks.HIDDEN, networks.INNER),
    }


def test_transposed_storage_stops_here(network, tokens):
    cells = network("mixed")
    block = opened(cells).block(0, None)
    stored = cells.layers[0].q.weight.asnumpy()
    assert not cells.layers[0].q.transpose_b
    assert np.array_equal(block.layers["layers.0.q"].weight(), stored.T)
    rest = dict(block.rest(()))
    assert np.array_equal(from_raw(rest["layers.0.q.weight"].read()), stored), "and is what is written back"


def test_every_expert_is_a_layer_with_tokens_of_its_own(network, networks, tokens):
    model = opened(network("mixture"))
    names = [f"layers.0.experts.{n}.w1" for n in range(networks.EXPERTS)]
    infos = {info.name: info for info in model.layers}
    assert {infos[name].alias for name in names} == {"layers.0.w1"}
    assert {infos[name].shape for name in names} == {(networks.INNER, networks.HIDDEN)}
    assert model.kept["layers.0.router"] == "routes tokens to experts"
    block, seen = model.block(0, (tokens, None)), {}
    block.run(tokens, None, lambda name, x: seen.update({name: len(x)}))
    assert sum(seen.get(infos[name].site, 0) for name in names) == tokens.size


def test_batched_experts_are_computed_one_by_one(mindspore):
    from mindformers.modules.layers import Linear

    from gs_mindformers import experts

    made = {"compute_dtype": mindspore.float32, "param_init_type": mindspore.float32, "has_bias": True}
    cell = Linear(16, 8, expert_num=4, outer_batch=2, activation="relu", **made)
    x = np.random.default_rng(0).standard_normal((2, 4, 3, 16)).astype(np.float32)
    weight, bias = cell.weight.asnumpy(), np.random.default_rng(1).standard_normal((1, 4, 1, 8)).astype(np.float32)
    cell.bias.set_data(mindspore.Tensor(bias))
    wanted = np.maximum(np.einsum("beni,eoi->beno", x, weight) + bias, 0)
    found = experts.compute(cell, weight, False, mindspore.Tensor(x), ((), {}), lambda e, rows, times: times(rows))
    assert np.allclose(found.asnumpy(), wanted, atol=1e-6)


def test_blocks_are_found_or_named(llama, tokens):
    assert opened(llama()).blocks == ["model.layers.0", "model.layers.1"]
    named = opened(llama(), "mindformers.models.llama.llama_transformer.LLamaDecodeLayer")
    assert named.blocks == opened(llama(), "LLamaDecodeLayer").blocks == ["model.layers.0", "model.layers.1"]
    with pytest.raises(PlanError, match="no cell of the network is of type Nothing"):
        opened(llama(), "Nothing")


def test_a_network_without_a_list_of_blocks_is_one(mindspore, networks, randomize, tokens):
    from mindspore import nn

    class Two(nn.Cell):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(networks.VOCABULARY, networks.HIDDEN)
            self.one, self.two = networks.Mixed(), networks.Mixed()

        def construct(self, x: Any) -> Any:
            return self.two(self.one(self.embedding(x)))

    model = opened(randomize(Two()))
    assert model.blocks == [""]
    assert len(model.layers) == 14


def test_blocks_that_share_more_than_they_return_are_one(mindspore, networks, randomize):
    class Remembering(networks.Decoder):
        def construct(self, tokens: Any) -> Any:
            x = first = self.embedding(tokens)
            for block in self.layers:
                first, x = x, block(x + first)
            return self.head(self.norm(x))

    network = randomize(Remembering(networks.Mixed))
    network.layers.append(networks.Mixed())
    model = opened(randomize(network))
    assert model.blocks == [""]
    assert "block 2 takes more" in model.warnings[0]


def test_quantized_rows_are_exported_as_out_by_in(network, tmp_path):
    cells = network("mixed")
    quantize(cells, RTN, tmp_path, adapter=MindFormers())
    scale = from_raw(Checkpoint(tmp_path)["layers.0.q.weight_scale"].read()).reshape(-1)
    largest = np.abs(cells.layers[0].q.weight.asnumpy()).max(axis=0)
    assert np.allclose(scale, largest / 127.5, rtol=1e-6), "one scale for each output feature"


def test_a_network_that_cannot_run_says_so(mindspore, networks):
    class Broken(networks.Decoder):
        def construct(self, tokens: Any) -> Any:
            raise RuntimeError("no such kernel")

    with pytest.raises(PlanError, match=r"layers cannot be found.*no such kernel"):
        opened(Broken(networks.Mixed))


def test_importing_the_room_imports_no_framework(mindspore: Callable[..., Any]):
    import subprocess
    import sys

    script = "import gs_mindformers, sys; sys.exit('mindspore' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
