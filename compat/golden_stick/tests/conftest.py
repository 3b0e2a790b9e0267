"""A workspace as the Golden Stick page lays it out, with a network of one small block in place of a large one."""

import json
import os
import shutil
from pathlib import Path

import pytest

TOKENIZER = Path(__file__).parents[3] / "tests" / "data" / "tiny-llama" / "tokenizer.json"
YAML = """
seed: 0
run_mode: predict
use_parallel: False
load_checkpoint: '{checkpoint}'
context: {{mode: 1, device_target: CPU, device_id: 0}}
parallel:
  parallel_mode: "STAND_ALONE"
  gradients_mean: False
  enable_alltoall: False
  full_batch: False
  search_mode: "sharding_propagation"
  enable_parallel_optimizer: False
  strategy_ckpt_save_file: "./ckpt_strategy.ckpt"
  parallel_optimizer_config:
    gradient_accumulation_shard: False
    parallel_optimizer_threshold: 64
parallel_config:
  data_parallel: 1
  model_parallel: 1
  pipeline_stage: 1
  use_seq_parallel: False
  micro_batch_num: 16
  vocab_emb_dp: True
  gradient_aggregation_group: 4
moe_config: {{expert_num: 1}}
model:
  model_config:
    type: LlamaConfig
    batch_size: 1
    seq_length: 64
    hidden_size: 256
    num_layers: 1
    num_heads: 4
    n_kv_heads: 2
    vocab_size: 2048
    intermediate_size: 512
    rms_norm_eps: 1.0e-5
    compute_dtype: "{dtype}"
    layernorm_compute_type: "float32"
    softmax_compute_type: "float32"
    rotary_dtype: "{dtype}"
    param_init_type: "{dtype}"
    use_past: {use_past}
    block_size: 16
    num_blocks: 8
    use_flash_attention: False
    use_rope_slice: True
    fused_rms_norm: False
    bos_token_id: 0
    eos_token_id: 1
    pad_token_id: 2
    ignore_token_id: -100
    max_decode_length: 32
    top_k: 3
    top_p: 1
    do_sample: False
  arch: {{type: {architecture}}}
processor:
  tokenizer: {{type: LlamaTokenizerFast, vocab_file: '{tokenizer}', tokenizer_file: '{tokenizer}'}}
"""
DEFAULTS = {"checkpoint": "", "dtype": "float32", "architecture": "LlamaForCausalLM", "use_past": False}
PASSAGES = [
    f"The tower of {place} was built in {year} by masons who came from the coast, and it stood until the great storm."
    for place, year in (("Arden", 1411), ("Belmont", 1502), ("Corin", 1388), ("Dover", 1290), ("Elsinore", 1574))
]


@pytest.fixture(scope="session")
def mindspore(tmp_path_factory):
    """MindSpore, computing at once from its first operation on."""
    os.chdir(tmp_path_factory.mktemp("output"))  # where MindFormers puts its logs
    import mindspore

    mindspore.set_context(pynative_synchronize=True)
    return mindspore


@pytest.fixture
def workspace(tmp_path, monkeypatch) -> Path:
    """The folder a script runs in: `squad/`, `tokenizer.json`, `predict_llama2_7b.yaml`."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(TOKENIZER, tmp_path)
    (tmp_path / "squad").mkdir()
    paragraphs = [
        {"context": text, "qas": [{"question": "When was it built?", "answers": [{"text": text.split(" in ")[1][:4]}]}]}
        for text in PASSAGES
    ]
    for name in ("train-v1.1.json", "dev-v1.1.json"):
        (tmp_path / "squad" / name).write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    _write(tmp_path)
    return tmp_path


@pytest.fixture
def write_yaml(workspace):
    """Write `predict_llama2_7b.yaml` anew, with other values; gives its path."""
    return lambda **values: str(_write(workspace, **values))


def _write(folder: Path, **values) -> Path:
    path = folder / "predict_llama2_7b.yaml"
    path.write_text(YAML.format(tokenizer=folder / "tokenizer.json", **DEFAULTS | values))
    return path
