"""Whole models by path, into folders for engines."""

import json
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from gs_compat.auto import AutoQuantForCausalLM
from gs_compat.config import PTQConfig
from gs_compat.words import QuantGranularity

TINY = Path(__file__).parents[3] / "tests" / "data" / "tiny-llama"


def test_a_path_that_is_no_model_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"expected a checkpoint folder or a MindFormers \.yaml file"):
        AutoQuantForCausalLM.from_pretrained(tmp_path / "nothing")


def test_a_folder_is_saved_after_it_was_calibrated_and_does_not_run(tmp_path):
    model = AutoQuantForCausalLM.from_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="call calibrate first"):
        model.save_quantized(tmp_path / "out")
    with pytest.raises(RuntimeError, match="needs a live network"):
        model.forward([[1, 2]])


@pytest.mark.lane
def test_a_folder_becomes_a_folder_that_engines_read(mindspore, tmp_path):
    model = AutoQuantForCausalLM.from_pretrained(TINY)
    policies = OrderedDict({r".*\.down_proj": PTQConfig(act_quant_dtype="int8", opname_blacklist=["layers.0"])})
    policies[r".*\.down_proj"].act_quant_granularity = QuantGranularity.PER_TOKEN
    model.calibrate(PTQConfig(), policies)
    model.save_quantized(tmp_path / "out")
    types = json.loads((tmp_path / "out" / "quantization_description.json").read_text())
    assert types["model.layers.1.self_attn.q_proj.weight"] == "W8A16"
    assert types["model.layers.0.mlp.down_proj.weight"] == "FLOAT"
    assert types["model.layers.1.mlp.down_proj.weight"] == "W8A8_DYNAMIC"
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    with pytest.raises(FileExistsError, match="is not empty"):
        model.save_quantized(tmp_path / "out")


@pytest.mark.lane
def test_a_yaml_file_becomes_a_live_network(mindspore, write_yaml, tmp_path):
    model = AutoQuantForCausalLM.from_pretrained(write_yaml())
    samples = np.random.default_rng(0).integers(3, 2000, (2, 64))
    prompt = np.array([[5, 6, 7]])
    before = model.forward(prompt, max_new_tokens=1)[0]
    model.calibrate(PTQConfig(act_quant_dtype="int8"), None, samples)
    assert np.array_equal(model.forward(prompt)[0], before)
    model.save_quantized(tmp_path / "out")
    types = json.loads((tmp_path / "out" / "quantization_description.json").read_text())
    assert types["model.layers.0.attention.wq.deq_scale"] == "W8A8"
    model.fake_quant(PTQConfig())
    assert model.forward(prompt)[0][:3].tolist() == [5, 6, 7]
