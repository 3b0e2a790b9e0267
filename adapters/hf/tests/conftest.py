"""Tiny models with random weights, made from configurations: no data, no network."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from gs_core.testing import write_distribution
from gs_hf import HuggingFace
from gs_hf.model import HFModel

os.environ["HF_HUB_OFFLINE"] = "1"
torch.set_num_threads(1)  # such small products only wait for each other

SIZES = {"vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
COMMON = SIZES | {"max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
GATED = COMMON | {"intermediate_size": 96, "num_key_value_heads": 2, "head_dim": 16}
EXPERTS = GATED | {"moe_intermediate_size": 32, "num_experts_per_tok": 2, "num_experts": 8, "decoder_sparse_step": 1}

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", GATED),
    "gemma": ("Gemma", GATED),
    "gemma3_text": ("Gemma3", GATED),
    "qwen2": ("Qwen2", GATED),
    "opt": ("OPT", COMMON | {"ffn_dim": 96, "word_embed_proj_dim": 64}),
    "gpt_neox": ("GPTNeoX", COMMON | {"intermediate_size": 96}),
    "phi": ("Phi", COMMON | {"intermediate_size": 96}),
    "mixtral": ("Mixtral", GATED | {"num_local_experts": 8, "num_experts_per_tok": 2}),
    "qwen3_moe": ("Qwen3Moe", EXPERTS),
}


@pytest.fixture(scope="session")
def build() -> Callable[..., transformers.PreTrainedModel]:
    """``(family, dtype="float32", **changes)``: a model of random weights, the same each time. No norm is all ones and
    no bias all zeros, so that none of them can be forgotten unseen."""

    def make(family: str, dtype: str = "float32", **changes: Any) -> transformers.PreTrainedModel:
        name, config = CONFIGS[family]
        torch.manual_seed(0)
        kind = "Gemma3TextConfig" if family == "gemma3_text" else f"{name}Config"
        made = getattr(transformers, kind)(**config | changes)
        model = getattr(transformers, f"{name}ForCausalLM")(made).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                spread = 0.2 if parameter.ndim == 1 else 1 / parameter.shape[-1] ** 0.5
                noise = torch.randn_like(parameter) * spread
                parameter.copy_(parameter + noise if parameter.ndim == 1 else noise)
        return model.to(getattr(torch, dtype))

    return make


@pytest.fixture
def saved(build: Callable[..., Any], tmp_path: Path) -> Callable[..., Path]:
    """``(family, dtype, shard=None, **changes)``: the folder of such a model, cut into shards of that size."""

    def save(family: str, dtype: str = "float32", shard: str | None = None, **changes: Any) -> Path:
        folder = tmp_path / f"{family}-{dtype}-{shard}"
        build(family, dtype, **changes).save_pretrained(folder, **({"max_shard_size": shard} if shard else {}))
        return folder

    return save


@pytest.fixture(scope="session")
def opened() -> Callable[..., HFModel]:
    """``(source)``: the adapter's model of a folder or a live module."""
    return lambda source: HuggingFace().open(source, "cpu")


@pytest.fixture(scope="session")
def tokens() -> np.ndarray:
    """Token ids, int64 ``(4, 24)``."""
    return np.random.default_rng(0).integers(3, 96, (4, 24))


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The conformance kit's algorithms ``rounding``, ``levelling`` and ``caching``, and its format ``plain``, as if
    installed."""
    module = "gs_core.testing.plugins"
    folder = write_distribution(
        tmp_path / "site", "kit", format=f"plain = {module}:Plain",
        algorithm=f"rounding = {module}:Rounding\nlevelling = {module}:Levelling\ncaching = {module}:Caching",
    )  # fmt: skip
    monkeypatch.syspath_prepend(folder)
