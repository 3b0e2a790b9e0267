"""Tiny networks with random weights. MindSpore is imported only where a test asks for a network: what needs it is
marked ``lane`` and runs in an environment of its own."""

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gs_core.arrays import astype
from gs_core.storage import write_json, write_safetensors

SIZES = {"num_layers": 2, "hidden_size": 64, "num_heads": 4, "n_kv_heads": 2, "intermediate_size": 96}
ON_CPU = {"use_past": False, "use_flash_attention": False, "use_rope_slice": True, "fused_rms_norm": False}


@pytest.fixture(scope="session")
def mindspore(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """MindSpore, computing at once from its first operation on: much faster for products as small as these."""
    os.chdir(tmp_path_factory.mktemp("output"))  # where MindFormers puts its logs
    import mindspore

    mindspore.set_context(pynative_synchronize=True)
    return mindspore


@pytest.fixture(scope="session")
def randomize(mindspore: Any) -> Callable[[Any], Any]:
    """``(network)``: fill it with random weights, the same each time. No norm is all ones and no bias all zeros, so
    that none of them can be forgotten unseen."""

    def fill(network: Any) -> Any:
        random = np.random.default_rng(0)
        for parameter in network.get_parameters():
            noise = random.standard_normal(parameter.shape).astype(np.float32)
            inputs = parameter.shape[-1]
            value = 1 + 0.2 * noise if "norm" in parameter.name else 0.2 * noise if noise.ndim == 1 else noise
            value = value / inputs**0.5 if noise.ndim > 1 else value
            parameter.set_data(mindspore.Tensor(value, parameter.dtype))
        return network

    return fill


@pytest.fixture(scope="session")
def llama(mindspore: Any, randomize: Callable[[Any], Any]) -> Callable[..., Any]:
    """``(dtype, **changes)``: a MindFormers Llama of random weights."""

    def make(dtype: str = "float32", **changes: Any) -> Any:
        from mindformers.models.llama import LlamaConfig, LlamaForCausalLM

        dtypes = {"compute_dtype": dtype, "param_init_type": dtype, "layernorm_compute_type": dtype}
        sizes = SIZES | {"vocab_size": 96, "seq_length": 64, "pad_token_id": -1}
        return randomize(LlamaForCausalLM(LlamaConfig(**sizes | ON_CPU | dtypes | changes)))

    return make


@pytest.fixture(scope="session")
def tokens() -> np.ndarray:
    """Token ids, int64 ``(4, 24)``."""
    return np.random.default_rng(0).integers(3, 96, (4, 24))


@pytest.fixture(scope="session")
def networks(mindspore: Any) -> Any:
    """The module ``networks.py``."""
    spec = importlib.util.spec_from_file_location("networks", Path(__file__).with_name("networks.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def network(networks: Any, randomize: Callable[[Any], Any]) -> Callable[[str], Any]:
    """``(kind)``: a decoder of random weights out of that kind of block: mixed, fused, mixture."""
    return lambda kind: randomize(networks.Decoder(networks.BLOCKS[kind]))


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of random bfloat16 weights as Hugging Face saves it. Needs no MindSpore."""
    folder, random = tmp_path_factory.mktemp("llama"), np.random.default_rng(0)
    hidden, inner, values = SIZES["hidden_size"], SIZES["intermediate_size"], 32
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens": (96, hidden), "model.norm": (hidden,)}
    for number in range(2):
        block = f"model.layers.{number}."
        shapes |= {block + name: (hidden,) for name in ("input_layernorm", "post_attention_layernorm")}
        shapes |= {block + f"self_attn.{name}": (hidden, hidden) for name in ("q_proj", "o_proj")}
        shapes |= {block + f"self_attn.{name}": (values, hidden) for name in ("k_proj", "v_proj")}
        shapes |= {block + f"mlp.{name}": (inner, hidden) for name in ("gate_proj", "up_proj")}
        shapes |= {block + "mlp.down_proj": (hidden, inner)}
    shapes["lm_head"] = (96, hidden)
    weights = {}
    for name, shape in shapes.items():
        noise = random.standard_normal(shape)
        value = 1 + 0.2 * noise if len(shape) == 1 else noise / shape[-1] ** 0.5
        weights[f"{name}.weight"] = astype(value.astype(np.float32), "bfloat16")
    write_safetensors(folder / "model.safetensors", weights.items())
    config = {
        "model_type": "llama",
        "vocab_size": 96,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 128,
    }
    write_json(folder / "config.json", config)
    return folder
