"""Llama checkpoints of random weights, written one by one: `checkpoints.py big|mid FOLDER TOKENS.npy [DTYPE]`."""

import argparse
import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gs_core.arrays import RawTensor, astype, to_raw
from gs_core.storage import INDEX, DerivedTensor, write_json, write_safetensors

SHARD_BYTES = 10**9
DTYPES = ("bfloat16", "float32")


@dataclass(frozen=True)
class Shape:
    """The sizes of a Llama, and of the calibration tokens that go with it."""

    hidden: int
    intermediate: int
    layers: int
    vocabulary: int
    samples: int
    seq_len: int
    heads: int = 16
    kv_heads: int = 16


SHAPES = {
    # Just over 3 GiB in 24 blocks.
    "big": Shape(2048, 7424, 24, 32000, 8, 128),
    # 202 M parameters, 186 M of them in 4 blocks.
    "mid": Shape(2048, 5504, 4, 4096, 16, 512, kv_heads=8),
}


def parameters(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of all weights, as transformers saves a Llama."""
    yield "model.embed_tokens.weight", (shape.vocabulary, shape.hidden)
    for i in range(shape.layers):
        keys = shape.hidden // shape.heads * shape.kv_heads
        for name, rows in (("q", shape.hidden), ("k", keys), ("v", keys), ("o", shape.hidden)):
            yield f"model.layers.{i}.self_attn.{name}_proj.weight", (rows, shape.hidden)
        for name in ("gate", "up"):
            yield f"model.layers.{i}.mlp.{name}_proj.weight", (shape.intermediate, shape.hidden)
        yield f"model.layers.{i}.mlp.down_proj.weight", (shape.hidden, shape.intermediate)
        for name in ("input", "post_attention"):
            yield f"model.layers.{i}.{name}_layernorm.weight", (shape.hidden,)
    yield "model.norm.weight", (shape.hidden,)
    yield "lm_head.weight", (shape.vocabulary, shape.hidden)


BUNDLED = Path(__file__).parents[1] / "data" / "tiny-llama"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
"""Peers ask for one, though tokens are given."""


def random_tensor(seed: int, name: str, shape: tuple[int, ...], dtype: str) -> DerivedTensor:
    """Ones for a norm, else N(0, 0.02²) as transformers starts a Llama; made when it is written."""

    def make() -> RawTensor:
        if len(shape) == 1:
            values = np.ones(shape, np.float32)
        else:
            values = np.random.default_rng(seed).standard_normal(shape, np.float32) * np.float32(0.02)
        return to_raw(astype(values, dtype))

    return DerivedTensor(name, dtype, shape, make)


def write(shape: Shape, folder: Path, dtype: str) -> int:
    """Write the checkpoint in shards of about ``SHARD_BYTES``; returns the bytes of all tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = [random_tensor(seed, *parameter, dtype) for seed, parameter in enumerate(parameters(shape))]
    total, shards, weight_map = sum(t.nbytes for t in tensors), list[list[DerivedTensor]](), {}
    for tensor in tensors:
        if not shards or sum(t.nbytes for t in shards[-1]) >= SHARD_BYTES:
            shards.append([])
        shards[-1].append(tensor)
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_safetensors(folder / name, [(t.name, t) for t in shard])
        weight_map |= {t.name: name for t in shard}
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": 2048,
        "torch_dtype": dtype,
        "tie_word_embeddings": False,
    }
    write_json(folder / "config.json", config)
    return total


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("folder", type=Path)
    parser.add_argument("tokens", type=Path)
    parser.add_argument("dtype", nargs="?", choices=DTYPES, default=DTYPES[0])
    given = parser.parse_args()
    shape = SHAPES[given.shape]
    total = write(shape, given.folder, given.dtype)
    for name in TOKENIZER:
        shutil.copyfile(BUNDLED / name, given.folder / name)
    np.save(given.tokens, np.random.default_rng(0).integers(shape.vocabulary, size=(shape.samples, shape.seq_len)))
    count = sum(math.prod(size) for _, size in parameters(shape))
    print(
        json.dumps(
            {
                "bytes": total,
                "parameters": count,
                "blocks": shape.layers,
                "samples": shape.samples,
                "seq_len": shape.seq_len,
            }
        )
    )


if __name__ == "__main__":
    main()
