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
}
"""Hugging Face's names of a Llama's sizes, and ``LlamaConfig``'s."""
BIASED = ("qkv_has_bias", "attn_proj_has_bias")
BIASES: dict[str, dict[str, bool]] = {"llama": {}, "qwen2": {"qkv_has_bias": True}}
"""Architectures that MindFormers' Llama computes, and where they have biases, whatever their configuration says."""
LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
THEIRS = {*ARGUMENTS.values(), "qkv_concat", "multiple_of", "ffn_dim_multiplier", "seq_length", "attn_proj_has_bias"}
THEIRS |= {"extend_method", "scaling_factor"}


@dataclass(frozen=True)
class Config:
    """content: the configuration as it was read. arguments: ``LlamaConfig``'s, None for another architecture.
    obstacle: why no network can be built of it, None where one can."""

    content: dict[str, Any]
    arguments: dict[str, Any] | None
    obstacle: str | None = None

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
        if not str(content.get("type", "")).startswith("Llama"):
            return Config(content, None, _stranger(content.get("type")))
        return Config({"model_type": "llama", **content}, _arguments(content))
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("not a JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: {error}") from None
    kind = content.get("model_type")
    if kind not in BIASES:
        return Config(content, None, _stranger(kind))
    return Config(content, _arguments(content) | BIASES[kind], _obstacle(content))


def _stranger(kind: Any) -> str:
    return f"no network can be built of a '{kind}' here, only of {' and '.join(BIASES)}"


def _obstacle(content: dict[str, Any]) -> str | None:
    """What MindFormers' Llama would compute otherwise than the model that Hugging Face's configuration describes."""
    rope = _rope(content)
    method = rope.get("rope_type", rope.get("type", "default"))
    head = content.get("head_dim")
    refused = {
        f"positions scaled by '{method}'": method not in ("default", "llama3"),
        "a sliding window": bool(content.get("use_sliding_window")),
        "biases in the MLP": bool(content.get("mlp_bias")),
        f"the activation '{content.get('hidden_act')}'": content.get("hidden_act", "silu") != "silu",
        f"heads of {head}": bool(head) and head * content.get("num_attention_heads", 0) != content.get("hidden_size"),
    }
    found = [what for what, is_there in refused.items() if is_there]
    return f"no network can be built here that has {' and '.join(found)}" if found else None


def _rope(content: dict[str, Any]) -> dict[str, Any]:
    return content.get("rope_parameters") or content.get("rope_scaling") or {}


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
    content, rope = content | (content.get("rope_parameters") or {}), _rope(content)
    named = {ours: content[theirs] for theirs, ours in ARGUMENTS.items() if content.get(theirs) is not None}
    named |= dict.fromkeys(BIASED, True) if content.get("attention_bias") else {}
    if rope.get("rope_type") == "llama3" and all(name in rope for name in LLAMA3):
        scaling = {name: rope[name] for name in LLAMA3} | {"factor": float(rope["factor"])}
        named |= {"extend_method": "LLAMA3", "scaling_factor": scaling}
    return named | {name: content[name] for name in sorted(THEIRS) if content.get(name) is not None}
