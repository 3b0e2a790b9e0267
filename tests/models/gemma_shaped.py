"""A random model of Gemma 3's shape, with massive activations planted.

    python tests/models/gemma_shaped.py FOLDER [--blocks 6] [--vocabulary 8192]

It has these parts of Gemma 3: norms before and after attention and MLP, norms of queries and keys, heads of 256
channels, one key head, sliding windows, embeddings scaled by the root of the hidden size, tied embeddings. Its
tokenizer is the bundled one. The vocabulary of Gemma has 262,144 entries.
"""

import argparse
import shutil
from pathlib import Path

TOKENIZER = Path(__file__).parents[1] / "data" / "tiny-llama"
HIDDEN, INTERMEDIATE, WINDOW = 640, 2048, 64
MASSIVE_CHANNELS = (7, 311)
"""Channels of the residual stream that one block makes far larger than the others."""
MASSIVE_FEATURES = (5, 1200)
"""Inputs of ``down_proj`` that are far larger than the others, on some tokens."""


def gemma_shaped(folder: Path, blocks: int = 6, vocabulary: int = 8192) -> Path:
    """Write the model into ``folder`` as bfloat16, the same each time, and return the folder."""
    import torch
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    config = Gemma3TextConfig(
        vocab_size=vocabulary,
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=blocks,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=256,
        query_pre_attn_scalar=256,
        sliding_window=WINDOW,
        max_position_embeddings=2048,
        layer_types=["full_attention" if n % 6 == 5 else "sliding_attention" for n in range(blocks)],
        dtype="bfloat16",
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Gemma3ForCausalLM(config)
        _plant_massive_activations(model)
    model.to(torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (TOKENIZER / name).is_file():
            shutil.copy(TOKENIZER / name, folder / name)
    return folder


def _plant_massive_activations(model: object) -> None:
    import torch

    with torch.no_grad():
        for layer in model.model.layers:
            for norm in (layer.input_layernorm, layer.pre_feedforward_layernorm):
                norm.weight.uniform_(-0.5, 4.0)
            for norm in (layer.post_attention_layernorm, layer.post_feedforward_layernorm):
                norm.weight.uniform_(-0.5, 1.0)
            layer.mlp.gate_proj.weight[list(MASSIVE_FEATURES)] *= 12
            layer.mlp.up_proj.weight[list(MASSIVE_FEATURES)] *= 12
        model.model.layers[0].post_feedforward_layernorm.weight[list(MASSIVE_CHANNELS)] = 800.0
        # Large enough for predictions that a quantization error can change.
        model.model.norm.weight.fill_(7.0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--vocabulary", type=int, default=8192)
    given = parser.parse_args()
    print(gemma_shaped(given.folder, given.blocks, given.vocabulary))
