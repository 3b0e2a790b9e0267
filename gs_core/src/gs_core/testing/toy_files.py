"""The toy's checkpoint folder: its configuration, and random weights for it."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gs_core.arrays import astype
from gs_core.errors import CheckpointError
from gs_core.storage import INDEX, SINGLE, write_json, write_safetensors

CONFIG, MODEL_TYPE = "config.json", "toy"
MAX_SIZE = 2**20


@dataclass(frozen=True)
class ToyConfig:
    """Sizes. The default ones take every preset: groups of 128 divide each layer's input."""

    vocabulary: int = 256
    hidden: int = 128
    intermediate: int = 256
    blocks: int = 2
    heads: int = 4
    kv_heads: int = 2
    max_tokens: int = 512

    @property
    def head(self) -> int:
        return self.hidden // self.heads

    @property
    def values(self) -> int:
        """Output channels of k and v."""
        return self.kv_heads * self.head

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> "ToyConfig":
        """Raises ``CheckpointError`` for sizes that are missing or no positive integers."""
        sizes: dict[str, Any] = {name: config.get(name) for name in cls.__dataclass_fields__}
        for name, size in sizes.items():
            if type(size) is not int or not 0 < size <= MAX_SIZE:
                raise CheckpointError(
                    f"{CONFIG}: '{name}' must be a positive integer up to {MAX_SIZE}, got {size!r:.40}"
                )
        return cls(**sizes)


def read_config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / CONFIG).read_text(encoding="utf-8"))


def write_toy(
    folder: str | Path, *, dtype: str = "bfloat16", shards: int = 1, seed: int = 0, outliers: float = 10.0, **sizes: int
) -> Path:
    """Write a toy with random weights and return its folder.

    dtype: what the weights are stored in, ``bfloat16`` or ``float32``. shards: how many files; more than one come
    with an index. outliers: how much larger than the others one channel in 32 of every norm is, as the channels of
    real models are. sizes: fields of ``ToyConfig``.
    """
    folder, config = Path(folder), ToyConfig(**sizes)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / CONFIG, {"model_type": MODEL_TYPE, **asdict(config)})
    write_json(folder / "tokenizer.json", {"type": "bytes"})
    weights = [(name, astype(value, dtype)) for name, value in random_weights(config, seed, outliers).items()]
    if shards == 1:
        write_safetensors(folder / SINGLE, weights)
        return folder
    weight_map: dict[str, str] = {}
    total = 0
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        written = write_safetensors(folder / file, weights[number::shards])
        weight_map |= dict.fromkeys(written, file)
        total += sum(written.values())
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    return folder


def random_weights(config: ToyConfig, seed: int, outliers: float) -> dict[str, np.ndarray]:
    """Every tensor of the checkpoint by name, float32."""
    random = np.random.default_rng(seed)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return (random.standard_normal((rows, columns)) / columns**0.5).astype(np.float32)

    def norm() -> np.ndarray:
        weight = 1 + 0.1 * random.standard_normal(config.hidden).astype(np.float32)
        weight[random.permutation(config.hidden)[: -(-config.hidden // 32)]] *= outliers
        return weight

    weights = {"embed.weight": random.standard_normal((config.vocabulary, config.hidden)).astype(np.float32)}
    for block in range(config.blocks):
        of_block = {
            "attention_norm": norm(),
            "q": matrix(config.hidden, config.hidden),
            "k": matrix(config.values, config.hidden),
            "v": matrix(config.values, config.hidden),
            "o": matrix(config.hidden, config.hidden),
            "mlp_norm": norm(),
            "gate": matrix(config.intermediate, config.hidden),
            "up": matrix(config.intermediate, config.hidden),
            "down": matrix(config.hidden, config.intermediate),
        }
        weights |= {f"blocks.{block}.{name}.weight": value for name, value in of_block.items()}
    weights["norm.weight"] = np.ones(config.hidden, np.float32)
    weights["lm_head.weight"] = matrix(config.vocabulary, config.hidden)
    return weights
