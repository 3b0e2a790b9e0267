"""Every causal language model that transformers ships, made tiny.

`names()` lists the model types and `make(name)` builds one with random weights. A configuration is
made by giving a small value to every field whose name SMALL knows, and two layers, or as many as
it takes to have each kind of layer. What an architecture needs beyond that is in CORRECTIONS.

    python tests/architectures/tiny.py [name ...]      prints name, class, seconds, ok or why not
"""

import dataclasses
import sys
import time
from typing import Any

import torch
from torch.nn.modules.conv import _ConvNd
from transformers import PreTrainedConfig, PreTrainedModel, logging
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

VOCAB = 256
SMALL: dict[str, Any] = {"is_decoder": True}
for value, fields in {
    0: "pad_token_id num_nextn_predict_layers num_mtp_layers",
    1: """bos_token_id n_shared_experts num_shared_experts moe_num_shared_experts first_k_dense_replace
        num_dense_layers topk_group""",
    2: """eos_token_id num_key_value_heads num_kv_heads kv_n_heads swa_num_key_value_heads
        linear_num_key_heads num_experts_per_tok num_experts_per_token moe_topk moe_k moe_top_k
        top_k_experts n_group num_expert_group index_topk_blocks encoder_layers num_encoder_layers""",
    4: """num_attention_heads n_head n_heads num_heads attention_heads decoder_attention_heads
        encoder_attention_heads num_decoder_attention_heads swa_num_attention_heads linear_num_heads
        linear_num_value_heads n_mamba_heads index_n_heads num_experts n_routed_experts
        num_local_experts moe_num_experts""",
    8: "mamba_n_heads mamba_num_heads index_block_size",
    16: """sliding_window sliding_window_size attention_window_size window_size attention_chunk_size
        chunk_size mamba_chunk_size state_size mamba_d_state ssm_state_size index_topk rotary_dim""",
    32: """head_dim global_head_dim swa_head_dim attention_head_dim attention_head_size dim_head d_head
        kv_channels linear_head_dim linear_key_head_dim linear_value_head_dim v_head_dim
        qk_nope_head_dim qk_rope_head_dim index_head_dim mamba_d_head mamba_head_dim""",
    128: """laurel_rank kv_lora_rank q_lora_rank time_step_rank mamba_dt_rank gated_norm_rank
        hidden_size hidden_size_global backbone_hidden_size attention_hidden_size out_hidden_size
        router_hidden_size d_model n_embd embedding_dim emb_dim embedding_size word_embed_proj_dim
        input_embedding_size output_embedding_size pronunciation_embed_dim shape_embed_dim lru_width
        moe_intermediate_size shared_expert_intermediate_size moe_shared_expert_intermediate_size
        expert_ffn_hidden_size max_position_embeddings n_positions n_ctx max_seq_len context_length
        max_source_positions max_target_positions adapter_in_dim adapter_out_dim adapter_input_size
        downsample_hidden_size output_proj_dims audio_embed_dim mm_embed_dim nemo_conv_channels
        ext_pw_out_channel depthwise_separable_out_channel""",
    256: """intermediate_size dense_intermediate_size intermediate_size_mlp shared_intermediate_size
        prefix_dense_intermediate_size ffn_dim n_inner ffn_hidden_size decoder_ffn_dim encoder_ffn_dim
        dim_ff dff d_inner feed_forward_size mamba_d_ssm vocab_size decoder_vocab_size
        audio_vocab_size shape_vocab_size pronunciation_vocab_size vocab_size_per_layer_input
        encoder_hash_byte_group_vocab""",
}.items():
    SMALL |= dict.fromkeys(fields.split(), value)

DEPTH = [
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "decoder_layers",
    "num_decoder_layers",
    "num_blocks",
]
KINDS = ["layer_types", "layers_block_type", "mlp_layer_types", "indexer_types"]

_FULL, _SLIDING, _LINEAR = "full_attention", "sliding_attention", "linear_attention"
_DOTS3 = {
    "swa_num_attention_heads": 4,
    "swa_num_key_value_heads": 4,
    "swa_q_lora_rank": 128,
    "swa_kv_lora_rank": 128,
    "swa_head_dim": 64,
    "swa_qk_nope_head_dim": 32,
    "swa_v_head_dim": 32,
}
_QWEN4 = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 32,
    "indexer_budget": 16,
    "indexer_compress_ratio": 4,
    "hc_lowrank": 128,
    "ple_layer_ids": [1],
    "ngram_vocab_size_base": 64,
    "heads_per_ngram": 2,
    "split_ngram_parts": 2,
}
CORRECTIONS: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "cohere_compass_text": {
        "layer_types": [_SLIDING, _FULL],
        "rope_parameters": {k: {"rope_type": "default", "rope_theta": 1e4} for k in (_SLIDING, _FULL)},
    },
    "dbrx": {
        "attn_config": {"rope_theta": 1e4, "clip_qkv": 8, "kv_n_heads": 2},
        "ffn_config": {"ffn_hidden_size": 128, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v4": {"num_key_value_heads": 1, "o_groups": 1, "o_lora_rank": 128},
    "dots3_note": {"text_config": _DOTS3},
    "dots3_note_text": _DOTS3,
    "flint": {"mlp_only_layers": [0]},
    "fuyu": {"patch_size": 16},
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "layer_types": [_SLIDING, _FULL, _SLIDING, _FULL],
        "num_kv_shared_layers": 2,
    },
    "gemma4": {"vision_config": {"position_embedding_size": 64}},
    "gemma4_assistant": {"text_config": {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}},
    "gemma4_text": {"enable_moe_block": True},
    "gemma4_unified": {"vision_config": {"patch_size": 4}},
    "got_ocr2": {"vision_config": {"image_size": 64, "mlp_dim": 256}},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"layer_types": [_LINEAR, _FULL]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2": {"layer_types": ["conv", _FULL]},
    "lfm2_moe": {"layer_types": ["conv", _FULL]},
    "llama4_text": {"moe_layers": [1]},
    "longcat_flash": {"zero_expert_num": 2},
    "mamba2": {"num_heads": 8},
    "minimax_m3_vl_text": {
        "layer_types": [_FULL, "minimax_m3_sparse"],
        "mlp_layer_types": ["dense", "sparse"],
    },
    "musicgen": {"decoder": {"num_codebooks": 2}},
    "musicgen_melody": {"decoder": {"num_codebooks": 2}},
    "qwen4_exp": {"text_config": _QWEN4},
    "qwen4_exp_text": _QWEN4,
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {
        "attn_layers": ["local", "lsh"],
        "axial_pos_shape": [8, 16],
        "axial_pos_embds_dim": [64, 64],
        "hash_seed": 0,
        "num_buckets": 4,
    },
    "smollm3": {"no_rope_layers": [1, 0]},
    "xlm": {"causal": True},
    "xmod": {"default_language": "en_XX", "adapter_reduction_factor": 1},
    "zamba": {
        "num_hidden_layers": 4,
        "layers_block_type": [_LINEAR, "hybrid", _LINEAR, "hybrid"],
        "attention_hidden_size": 256,
        "attention_head_dim": 64,
    },
    "zaya": {"num_experts_per_tok": 1},
}


def names() -> list[str]:
    """The model types, as AutoModelForCausalLM lists them."""
    return list(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def config(name: str) -> PreTrainedConfig:
    """The tiny configuration of a model type."""
    return _config(CONFIG_MAPPING[name], CORRECTIONS.get(name, {}))


def make(name: str, seed: int = 0) -> PreTrainedModel:
    """A tiny model in float32 and eval mode; its weights depend on the seed alone."""
    torch.manual_seed(seed)
    made = config(name)
    cls = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING[type(made)]
    if made.sub_configs and not isinstance(made, cls.config_class):  # the class takes a part of it
        made = next(c for k in made.sub_configs if isinstance(c := getattr(made, k), cls.config_class))
    model = cls._from_config(made, dtype=torch.float32).eval()
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn_like(parameter)
                continue
            convolution = isinstance(model.get_submodule(path.rpartition(".")[0]), _ConvNd)
            fan_in = parameter[0].numel() if convolution else parameter.shape[-1]
            parameter.normal_(std=fan_in**-0.5)
    return model


def inputs(seed: int = 1) -> dict[str, Any]:
    """What every model here is run on: two rows of thirty-two tokens, none of them special."""
    generator = torch.Generator().manual_seed(seed)
    return {"input_ids": torch.randint(8, VOCAB, (2, 32), generator=generator), "use_cache": False}


def check(name: str) -> str:
    """Ok, or the reason why this one does not run."""
    try:
        model = make(name)
        with torch.no_grad():
            logits = model(**inputs()).logits.float()
    except Exception as error:  # whatever goes wrong is the answer
        return f"failed: {type(error).__name__}: {error}"
    if not logits.isfinite().all() or logits.std() < 1e-3:
        return f"failed: logits {logits.mean():.3g} ± {logits.std():.3g}"
    return f"ok  {sum(p.numel() for p in model.parameters())} parameters"


def _config(cls: type[PreTrainedConfig], corrections: dict[str, Any]) -> PreTrainedConfig:
    fields = {f.name for f in dataclasses.fields(cls)}
    values = _depth(cls, fields) | {f: v for f, v in SMALL.items() if f in fields} | corrections
    if {"kv_lora_rank", "num_key_value_heads"} <= fields:  # latent attention has no grouped heads
        values["num_key_value_heads"] = values["num_attention_heads"]
    for field, spec in cls.sub_configs_defaults.items():
        fixed = issubclass(spec.config_class, PreTrainedConfig)
        sub = spec.config_class if fixed else CONFIG_MAPPING[spec.model_type]
        given = {k: v for k, v in spec.init_kwargs.items() if k not in SMALL and k not in DEPTH}
        values[field] = _config(sub, given | corrections.get(field, {}))
    return cls(**values)


def _depth(cls: type[PreTrainedConfig], fields: set[str]) -> dict[str, Any]:
    """The number of layers, and their kinds in the order of the default configuration."""
    if not fields.intersection(DEPTH):
        return {}
    default = cls()
    kinds = {f: list(dict.fromkeys(v)) for f in KINDS if f in fields and (v := getattr(default, f, None))}
    depth = max([2, *map(len, kinds.values())])
    return {f: depth for f in DEPTH if f in fields} | {f: (k * depth)[:depth] for f, k in kinds.items()}


def main(chosen: list[str]) -> None:
    """Print the table."""
    logging.set_verbosity_error()
    for name in chosen or names():
        start = time.perf_counter()
        result = " ".join(check(name).split())[:300]
        cls = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[name]
        print(f"{name:24} {cls:46} {time.perf_counter() - start:5.2f}  {result}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
