"""What a configuration accepts, and what it refuses with which words."""

from dataclasses import fields

import pytest

from gs_compat.algorithms import AWQConfig, GPTQQuantConfig, SmoothQuantConfig
from gs_compat.config import PTQConfig
from gs_compat.inner import InnerPTQConfig
from gs_compat.words import (
    BackendTarget,
    LayerQuantizeAlgo,
    OutliersSuppressionType,
    PrecisionRecovery,
    PTQMode,
    QuantGranularity,
)

GPTQ, AWQ = PrecisionRecovery.GPTQ, OutliersSuppressionType.AWQ
SMOOTH = OutliersSuppressionType.SMOOTH
PLUS, LITE = OutliersSuppressionType.OUTLIER_SUPPRESSION_PLUS, OutliersSuppressionType.OUTLIER_SUPPRESSION_LITE
PER_GROUP, PER_TOKEN = QuantGranularity.PER_GROUP, QuantGranularity.PER_TOKEN
W8A8 = {"weight_quant_dtype": "int8", "act_quant_dtype": "int8"}
A8W4 = {
    "weight_quant_dtype": "qint4x2",
    "act_quant_dtype": "int8",
    "act_quant_granularity": PER_TOKEN,
    "precision_recovery": GPTQ,
    "algo_args": GPTQQuantConfig(desc_act=True, static_groups=True),
}


class MindSporeDtype:
    """As MindSpore's own objects, it is known by how it prints."""

    def __init__(self, text: str):
        self.text = text

    def __str__(self) -> str:
        return self.text


def test_fields_stand_in_golden_sticks_order():
    given = (PTQMode.DEPLOY, BackendTarget.NONE, ["w2"], {}, "qint4x2", None, None, GPTQ, AWQ, PER_GROUP)
    config = PTQConfig(*given, QuantGranularity.PER_CHANNEL, QuantGranularity.PER_TENSOR, 64, True)
    assert [f.name for f in fields(PTQConfig)] == [
        *("mode", "backend", "opname_blacklist", "algo_args", "weight_quant_dtype", "kvcache_quant_dtype"),
        *("act_quant_dtype", "precision_recovery", "outliers_suppression", "weight_quant_granularity"),
        *("kvcache_quant_granularity", "act_quant_granularity", "group_size", "weight_clip"),
    ]
    assert (config.weight_quant_granularity, config.group_size, config.weight_clip) == (PER_GROUP, 64, True)


@pytest.mark.parametrize(
    ("given", "kept"),
    [("int8", "int8"), (MindSporeDtype("Int8"), "int8"), (MindSporeDtype("Int4"), "qint4x2"), ("int4", "qint4x2")],
)
def test_dtypes_of_mindspore_and_strings_are_the_same(given, kept):
    assert PTQConfig(weight_quant_dtype=given).weight_quant_dtype == kept


@pytest.mark.parametrize(
    ("values", "error", "words"),
    [
        ({"mode": "quantize"}, ValueError, "mode"),
        ({"backend": None}, ValueError, "backend"),
        ({"weight_quant_dtype": MindSporeDtype("Float16")}, ValueError, "weight_quant_dtype: got 'Float16'"),
        ({"act_quant_dtype": "qint4x2"}, ValueError, "act_quant_dtype"),
        ({"kvcache_quant_dtype": "qint4x2"}, ValueError, "kvcache_quant_dtype"),
        ({"opname_blacklist": "w2"}, TypeError, "opname_blacklist"),
        ({"opname_blacklist": [2]}, TypeError, "opname_blacklist"),
        ({"precision_recovery": "gptq"}, TypeError, "precision_recovery"),
        ({"outliers_suppression": None}, TypeError, "outliers_suppression"),
        ({"weight_quant_granularity": PER_TOKEN}, ValueError, "weight_quant_granularity"),
        ({"act_quant_granularity": PER_GROUP}, ValueError, "act_quant_granularity"),
        ({"kvcache_quant_granularity": QuantGranularity.PER_TENSOR}, ValueError, "kvcache_quant_granularity"),
        ({"group_size": 64.0}, TypeError, "group_size"),
        ({"group_size": True}, TypeError, "group_size"),
        ({"weight_clip": 1}, TypeError, "weight_clip"),
        ({"act_quant_granularity": PER_TOKEN}, ValueError, "needs act_quant_dtype int8"),
        ({"kvcache_quant_granularity": PER_TOKEN}, ValueError, "needs kvcache_quant_dtype int8"),
        ({"weight_quant_granularity": PER_GROUP}, ValueError, "64, 128, 256"),
        ({"weight_quant_granularity": PER_GROUP, "group_size": 32}, ValueError, "64, 128, 256"),
        ({"group_size": 64}, ValueError, "needs weight_quant_granularity PER_GROUP"),
        ({**W8A8, "weight_quant_granularity": PER_GROUP, "group_size": 64}, ValueError, "PER_CHANNEL"),
        ({"weight_quant_dtype": None, "act_quant_dtype": "int8"}, ValueError, "activations alone"),
        ({**W8A8, "precision_recovery": GPTQ}, ValueError, "for weights alone"),
        ({**W8A8, "outliers_suppression": AWQ}, ValueError, "for weights alone"),
        ({"outliers_suppression": LITE}, ValueError, "act_quant_dtype is None"),
        ({**W8A8, "kvcache_quant_dtype": "int8", "outliers_suppression": LITE}, ValueError, "without kvcache"),
        ({**A8W4, "outliers_suppression": LITE}, ValueError, "LITE is for int8 weights"),
        ({"weight_quant_dtype": "qint4x2", "kvcache_quant_dtype": "int8"}, ValueError, "cannot stand beside"),
        ({**A8W4, "precision_recovery": PrecisionRecovery.NONE, "algo_args": {}}, ValueError, "need .*GPTQ"),
        ({**A8W4, "algo_args": {}}, ValueError, "desc_act=True, static_groups=True"),
        ({**A8W4, "algo_args": GPTQQuantConfig(desc_act=True)}, ValueError, "static_groups=True"),
        ({**A8W4, "act_quant_granularity": QuantGranularity.PER_TENSOR}, ValueError, "PER_TOKEN"),
    ],
)
def test_what_golden_stick_refuses_is_refused(values, error, words):
    with pytest.raises(error, match=words):
        PTQConfig(**values)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"outliers_suppression": SMOOTH}, "act_quant_dtype is None"),
        ({"outliers_suppression": PLUS}, "act_quant_dtype is None"),
        ({"weight_quant_dtype": None, "outliers_suppression": AWQ}, "AWQ needs weight_quant_dtype"),
        ({"weight_quant_dtype": None, "precision_recovery": GPTQ}, "GPTQ needs weight_quant_dtype"),
        ({"algo_args": {"bogus": 1}}, "no option named 'bogus'"),
        ({"precision_recovery": GPTQ, "algo_args": {"damp": 0.1}}, "no option named 'damp'.*damp_percent"),
        ({"precision_recovery": GPTQ, "algo_args": AWQConfig()}, "got AWQConfig.* take GPTQQuantConfig"),
        ({"algo_args": GPTQQuantConfig()}, "got GPTQQuantConfig.* take none"),
    ],
)
def test_what_means_nothing_is_refused(values, words):
    with pytest.raises(ValueError, match=words):
        PTQConfig(**values)


@pytest.mark.parametrize(
    "values",
    [
        {"weight_quant_dtype": None},
        {"outliers_suppression": AWQ, "precision_recovery": GPTQ, "algo_args": GPTQQuantConfig(desc_act=True)},
        {"backend": BackendTarget.NONE},
        A8W4,
        {**A8W4, "algo_args": {"desc_act": True, "static_groups": True}},
        {**W8A8, "outliers_suppression": SMOOTH, "kvcache_quant_dtype": "int8"},
    ],
)
def test_what_scripts_rely_on_is_accepted(values):
    PTQConfig(**values)


@pytest.mark.parametrize(
    ("kind", "values", "error"),
    [
        (GPTQQuantConfig, {"damp_percent": 1}, TypeError),
        (GPTQQuantConfig, {"damp_percent": 1.5}, ValueError),
        (GPTQQuantConfig, {"block_size": 0}, ValueError),
        (GPTQQuantConfig, {"block_size": 1.0}, TypeError),
        (GPTQQuantConfig, {"desc_act": 1}, TypeError),
        (GPTQQuantConfig, {"static_groups": None}, TypeError),
        (AWQConfig, {"duo_scaling": 0}, TypeError),
        (AWQConfig, {"smooth_alpha": []}, ValueError),
        (AWQConfig, {"smooth_alpha": 1}, TypeError),
        (AWQConfig, {"smooth_alpha": [0.5, 1.1]}, ValueError),
        (AWQConfig, {"weight_clip_ratio": "0.5"}, TypeError),
        (AWQConfig, {"weight_clip_ratio": [1.0, 0.0]}, ValueError),
        (SmoothQuantConfig, {"alpha": 5.0}, ValueError),
        (SmoothQuantConfig, {"alpha": 1}, TypeError),
    ],
)
def test_the_options_of_algorithms_have_types_and_ranges(kind, values, error):
    with pytest.raises(error, match=next(iter(values))):
        kind(**values)


def test_algo_args_are_kept_as_a_mapping_of_every_option():
    config = PTQConfig(precision_recovery=GPTQ, algo_args=GPTQQuantConfig(damp_percent=0.1))
    assert config.algo_args == {"block_size": 128, "desc_act": False, "damp_percent": 0.1, "static_groups": False}
    assert config.options(GPTQQuantConfig) == GPTQQuantConfig(damp_percent=0.1)


def test_a_switch_that_changes_nothing_warns_and_says_why():
    config = InnerPTQConfig()
    with pytest.warns(UserWarning, match="experimental = True has no effect here: there is one implementation"):
        config.experimental = True
    with pytest.warns(UserWarning, match="dump_path"):
        config.set_dump_path("somewhere")


def test_a_switch_that_does_not_exist_is_an_error():
    with pytest.raises(AttributeError, match="Did you mean 'weight_symmetric'"):
        InnerPTQConfig().weight_symetric = False


def test_switches_are_checked_with_the_rest():
    with pytest.raises(ValueError, match="weight_symmetric False is for weights alone"):
        InnerPTQConfig(act_quant_dtype="int8", weight_symmetric=False)
    with pytest.raises(ValueError, match="'w2' stands in opname_blacklist and in fallback_blacklist"):
        InnerPTQConfig(opname_blacklist=["w2"], fallback_blacklist={"w2": LayerQuantizeAlgo.A16W8})
    with pytest.raises(ValueError, match="a16w8"):
        InnerPTQConfig(fallback_blacklist={"w2": "a16w7"})


def test_words_are_read_from_values_and_names_and_typing_errors_are_not_none():
    assert OutliersSuppressionType.from_str("Outlier-Suppression+") is PLUS
    assert QuantGranularity.from_str("PER_TOKEN") is PER_TOKEN
    with pytest.raises(ValueError, match="Did you mean 'smooth'"):
        OutliersSuppressionType.from_str("smoth")
