"""What a folder's ``config.json`` or MindFormers ``.yaml`` says."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from gs_core import CheckpointError

ARGUMENTS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "n_kv_heads",
    "rms_norm_eps": "rms_norm_eps",
    "rope_theta": "theta",
    "max_position_embeddings": "max_position_embedding",
    "tie_word_embeddings": "tie_word_embeddings",
    "attention_bias": "qkv_has_bias",
}
"""Hugging Face's names of a Llama's sizes, and ``LlamaConfig``'s."""
THEIRS = {*ARGUMENTS.values(), "qkv_concat", "multiple_of", "ffn_dim_multiplier", "seq_length", "attn_proj_has_bias"}
THEIRS |= {"extend_method", "scaling_factor"}


@dataclass(frozen=True)
class Config:
    """content: the configuration as it was read. arguments: ``LlamaConfig``'s, None for another architecture."""

    content: dict[str, Any]
    arguments: dict[str, Any] | None

    @property
    def length(self) -> int | None:
        known = self.arguments or {}
        found = known.get("max_position_embedding") or known.get("seq_length")
        return int(found) if found else None


def why_none(folder: Path) -> str | None:
    """Why a folder has no configuration that can be read here, or ``None``."""
    if (folder / "config.json").is_file() or _yaml(folder) is not None:
        return None
    return "neither a config.json nor a MindFormers .yaml with model.model_config"


def read_config(folder: Path) -> Config:
    """Raises ``CheckpointError`` for a file that is damaged."""
    path = folder / "config.json"
    if not path.is_file():
        content = _yaml(folder) or {}
        llama = str(content.get("type", "")).startswith("Llama")
        return Config({"model_type": "llama", **content} if llama else content, _arguments(content) if llama else None)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("not a JSON object")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from None
    return Config(content, _arguments(content) if content.get("model_type") == "llama" else None)


def _yaml(folder: Path) -> dict[str, Any] | None:
    """``model.model_config`` of the folder's first MindFormers configuration."""
    for path in sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")]):
        try:
            found = yaml.safe_load(path.read_text(encoding="utf-8"))["model"]["model_config"]
        except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
            continue
        if isinstance(found, dict):
            return found
    return None


def _arguments(content: dict[str, Any]) -> dict[str, Any]:
    content = content | (content.get("rope_parameters") or {})
    named = {ours: content[theirs] for theirs, ours in ARGUMENTS.items() if content.get(theirs) is not None}
    return named | {name: content[name] for name in sorted(THEIRS) if content.get(name) is not None}
