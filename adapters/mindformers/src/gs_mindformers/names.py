"""A Llama's tensors by Hugging Face's names and by MindFormers': a renaming, one to one, nothing is permuted."""

OUTSIDE = {
    "model.embed_tokens.weight": "model.tok_embeddings.embedding_weight",
    "model.norm.weight": "model.norm_out.weight",
    "lm_head.weight": "lm_head.weight",
}
INSIDE = {
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}
BLOCKS = "model.layers."

TOGETHER = (
    ("attention.wq", "attention.wk", "attention.wv"),
    ("attention.wo",),
    ("feed_forward.w1", "feed_forward.w3"),
    ("feed_forward.w2",),
)
"""Layers of a block in the order of execution, those that share an input together."""
CONCATENATED = (("attention.w_qkv",), ("attention.wo",), ("feed_forward.w_gate_hidden",), ("feed_forward.w2",))
"""The same with ``qkv_concat``."""


def to_mindformers(name: str) -> str:
    """The MindFormers name of a parameter or module; a name that is not Hugging Face's comes back as it is."""
    return _renamed(name, OUTSIDE, INSIDE)


def to_huggingface(name: str) -> str:
    """The inverse of ``to_mindformers``."""
    return _renamed(name, {v: k for k, v in OUTSIDE.items()}, {v: k for k, v in INSIDE.items()})


def _renamed(name: str, outside: dict[str, str], inside: dict[str, str]) -> str:
    if not name.startswith(BLOCKS):
        return outside.get(name, name)
    number, _, rest = name.removeprefix(BLOCKS).partition(".")
    for theirs, ours in inside.items():
        if rest == theirs or rest.startswith(f"{theirs}."):
            return f"{BLOCKS}{number}.{ours}{rest.removeprefix(theirs)}"
    return name
