"""Configurations go to YAML and back, and stay what they are."""

from collections import OrderedDict
from pathlib import Path

import pytest
import yaml

from gs_compat.algorithms import AWQConfig, GPTQQuantConfig, SmoothQuantConfig
from gs_compat.config import PTQConfig
from gs_compat.inner import InnerPTQConfig
from gs_compat.policies import checked
from gs_compat.words import LayerQuantizeAlgo, OutliersSuppressionType, PrecisionRecovery, QuantGranularity

CONFIGS = [
    PTQConfig(),
    PTQConfig(weight_quant_dtype=None, kvcache_quant_dtype="int8", opname_blacklist=["w2", "lm_head"]),
    PTQConfig(
        weight_quant_dtype="qint4x2",
        weight_quant_granularity=QuantGranularity.PER_GROUP,
        group_size=64,
        outliers_suppression=OutliersSuppressionType.AWQ,
        algo_args=AWQConfig(smooth_alpha=0.5),
    ),
    InnerPTQConfig(precision_recovery=PrecisionRecovery.GPTQ, fallback_blacklist={"w2": LayerQuantizeAlgo.A16W8}),
    GPTQQuantConfig(damp_percent=0.1, desc_act=True),
    AWQConfig(duo_scaling=False, smooth_alpha=[0.5, 0.7, 0.9], weight_clip_ratio=[0.90, 0.95, 0.99]),
    SmoothQuantConfig(alpha=0.75),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_a_configuration_comes_back_equal_and_writing_leaves_it_alone(config, tmp_path):
    before = repr(config)
    config.dump(tmp_path / "first.yaml")
    config.dump(tmp_path / "second.yaml")
    assert repr(config) == before
    assert (tmp_path / "first.yaml").read_bytes() == (tmp_path / "second.yaml").read_bytes()
    found = type(config)().load(tmp_path / "first.yaml")
    assert {**found._plain(), "fallback_blacklist": 0} == {**config._plain(), "fallback_blacklist": 0}
    found.dump(tmp_path / "third.yaml")
    assert (tmp_path / "third.yaml").read_bytes() == (tmp_path / "first.yaml").read_bytes()


def test_dtypes_and_enumerations_are_spelt_as_golden_stick_spells_them(tmp_path):
    config = PTQConfig(weight_quant_dtype="qint4x2", outliers_suppression=OutliersSuppressionType.AWQ)
    config.dump(tmp_path / "config.yaml")
    written = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert written["weight_quant_dtype"] == "Int4"
    assert written["act_quant_dtype"] == "None"
    assert written["outliers_suppression"] == "AWQ"
    assert written["act_quant_granularity"] == "PER_TENSOR"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("weight_quant_dtype: Int16", "weight_quant_dtype: got 'Int16'"),
        ("group_size: 64", "needs weight_quant_granularity PER_GROUP"),
        ("outliers_suppression: SMOOTHE", "Did you mean 'smooth'"),
        ("opname_blackist: [w2]", "Did you mean 'opname_blacklist'"),
        ("- 1", "expected a mapping"),
    ],
)
def test_loading_validates_and_a_failure_changes_nothing(text, words, tmp_path):
    (tmp_path / "config.yaml").write_text(text)
    config = PTQConfig(opname_blacklist=["w3"])
    with pytest.raises(ValueError, match=words):
        config.load(tmp_path / "config.yaml")
    assert config == PTQConfig(opname_blacklist=["w3"])


def test_policies_are_copies(tmp_path):
    mine = PTQConfig(opname_blacklist=["w2"])
    found = checked(OrderedDict({".*w1": mine}))[".*w1"]
    found.opname_blacklist.append("w3")
    found.weight_quant_dtype = None
    assert mine == PTQConfig(opname_blacklist=["w2"])


def test_golden_sticks_own_file_is_read_and_written_again_to_the_letter(tmp_path):
    """`golden/awq.yaml` was written by mindspore_gs 1.4.1."""
    theirs = Path(__file__).parent / "golden" / "awq.yaml"
    found = InnerPTQConfig().load(theirs)
    asked = PTQConfig(
        weight_quant_dtype="qint4x2",
        weight_quant_granularity=QuantGranularity.PER_GROUP,
        group_size=64,
        outliers_suppression=OutliersSuppressionType.AWQ,
        algo_args=AWQConfig(duo_scaling=False, smooth_alpha=[0.5, 0.75], weight_clip_ratio=[1.0, 0.9]),
        opname_blacklist=["lm_head"],
    )
    assert found == InnerPTQConfig.inner_config(asked)
    found.dump(tmp_path / "ours.yaml")
    assert (tmp_path / "ours.yaml").read_text() == theirs.read_text()
