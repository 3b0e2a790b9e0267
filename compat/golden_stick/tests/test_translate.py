"""What a recipe asks of our line for what a script asks of Golden Stick."""

import re
import warnings
from collections import OrderedDict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gs_compat.algorithms import AWQConfig, GPTQQuantConfig, SmoothQuantConfig
from gs_compat.config import PTQConfig
from gs_compat.inner import InnerPTQConfig
from gs_compat.policies import checked
from gs_compat.translate import translate
from gs_compat.words import LayerQuantizeAlgo, OutliersSuppressionType, PrecisionRecovery, QuantGranularity
from gs_schemas import QuantizationArgs

NAMES = [f"model.layers.{i}.{n}" for i in range(2) for n in ("attention.wq", "attention.wo", "feed_forward.w2")]
CACHES = [f"model.layers.{i}.attention.infer_attention" for i in range(2)]
W8 = QuantizationArgs(format="int8")
W4 = QuantizationArgs(format="int4")
A8 = QuantizationArgs(format="int8", granularity="tensor", symmetric=False)
A8_TOKEN = QuantizationArgs(format="int8", granularity="token", dynamic=True)
C8 = QuantizationArgs(format="int8", granularity="channel")
C8_TOKEN = QuantizationArgs(format="int8", granularity="token", dynamic=True)
PER_GROUP, PER_TOKEN = QuantGranularity.PER_GROUP, QuantGranularity.PER_TOKEN
DEFAULT_GPTQ = {"act_order": False, "static_groups": False, "damping": 0.01, "block_size": 128}


def recipe(config=None, policies=None, names=NAMES, caches=(), **switches):
    config = InnerPTQConfig.inner_config(config or PTQConfig())
    for name, value in switches.items():
        setattr(config, name, value)
    return translate(config, checked(OrderedDict(policies or {})), names, caches)


def said(found, name):
    """The schemes and the algorithms of one name."""
    scheme, algorithms, _ = found.rule_for(name)
    if scheme is None:
        return None
    return (scheme.weights, scheme.inputs, scheme.kv_cache), [(a.name, a.options) for a in algorithms]


@pytest.mark.parametrize(
    ("values", "weights", "inputs", "algorithms"),
    [
        ({}, W8, None, [("rtn", {})]),
        ({"weight_quant_dtype": "qint4x2"}, W4, None, [("rtn", {})]),
        (
            {"weight_quant_dtype": "qint4x2", "weight_quant_granularity": PER_GROUP, "group_size": 64},
            QuantizationArgs(format="int4", granularity="group", group_size=64),
            None,
            [("rtn", {})],
        ),
        ({"weight_clip": True}, W8.model_copy(update={"observer": "mse"}), None, [("rtn", {})]),
        ({"act_quant_dtype": "int8"}, W8, A8, [("rtn", {})]),
        ({"act_quant_dtype": "int8", "act_quant_granularity": PER_TOKEN}, W8, A8_TOKEN, [("rtn", {})]),
        (
            {"act_quant_dtype": "int8", "outliers_suppression": OutliersSuppressionType.SMOOTH},
            *(W8, A8, [("smoothquant", {"alpha": 0.5, "online": True}), ("rtn", {})]),
        ),
        (
            {
                "act_quant_dtype": "int8",
                "outliers_suppression": OutliersSuppressionType.SMOOTH,
                "algo_args": SmoothQuantConfig(alpha=0.75),
            },
            *(W8, A8, [("smoothquant", {"alpha": 0.75, "online": True}), ("rtn", {})]),
        ),
        (
            {"act_quant_dtype": "int8", "outliers_suppression": OutliersSuppressionType.OUTLIER_SUPPRESSION_PLUS},
            *(W8, A8, [("osp", {}), ("rtn", {})]),
        ),
        (
            {"act_quant_dtype": "int8", "outliers_suppression": OutliersSuppressionType.OUTLIER_SUPPRESSION_LITE},
            *(
                W8.model_copy(update={"observer": "mse"}),
                A8,
                [("smoothquant", {"alpha": "auto", "online": True}), ("rtn", {})],
            ),
        ),
        (
            {
                "weight_quant_dtype": "qint4x2",
                "precision_recovery": PrecisionRecovery.GPTQ,
                "algo_args": GPTQQuantConfig(damp_percent=0.1, block_size=64),
            },
            *(W4, None, [("gptq", {**DEFAULT_GPTQ, "damping": 0.1, "block_size": 64})]),
        ),
        (
            {"weight_quant_dtype": "qint4x2", "outliers_suppression": OutliersSuppressionType.AWQ}
            | {"algo_args": AWQConfig(duo_scaling=False, smooth_alpha=0.5, weight_clip_ratio=[0.9, 1.0])},
            W4,
            None,
            [("awq", {"duo_scaling": False, "smooth_alpha": [0.5], "weight_clip_ratio": [0.9, 1.0]})],
        ),
        (
            {
                "weight_quant_dtype": "qint4x2",
                "act_quant_dtype": "int8",
                "act_quant_granularity": PER_TOKEN,
                "precision_recovery": PrecisionRecovery.GPTQ,
                "algo_args": GPTQQuantConfig(desc_act=True, static_groups=True),
            },
            *(W4, A8_TOKEN, [("gptq", {**DEFAULT_GPTQ, "act_order": True, "static_groups": True})]),
        ),
    ],
)
def test_each_configuration_is_one_scheme_and_its_algorithms(values, weights, inputs, algorithms):
    found = recipe(PTQConfig(**values))
    assert found.format == "golden_stick_network"
    assert all(said(found, name) == ((weights, inputs, None), algorithms) for name in NAMES)


def test_activation_order_brings_static_groups_along():
    """Else groups would not be neighbours, which no Golden Stick file can say."""
    config = PTQConfig(precision_recovery=PrecisionRecovery.GPTQ, algo_args=GPTQQuantConfig(desc_act=True))
    (_, ((_, options),)) = said(recipe(config), NAMES[0])
    assert options == {**DEFAULT_GPTQ, "act_order": True, "static_groups": True}


def test_awq_and_gptq_stand_one_after_the_other():
    config = PTQConfig(outliers_suppression=OutliersSuppressionType.AWQ, precision_recovery=PrecisionRecovery.GPTQ)
    assert [name for name, _ in said(recipe(config), NAMES[0])[1]] == ["awq", "gptq"]


def test_a_cache_is_quantized_beside_the_layers():
    found = recipe(PTQConfig(kvcache_quant_dtype="int8"), caches=CACHES)
    assert said(found, NAMES[0]) == ((W8, None, None), [("rtn", {})])
    assert said(found, CACHES[0]) == ((None, None, C8), [("kv_cache", {})])


def test_a_network_without_a_cache_is_told_so():
    with pytest.warns(UserWarning, match="nothing in this network caches keys and values"):
        found = recipe(PTQConfig(kvcache_quant_dtype="int8"))
    assert said(found, NAMES[0]) == ((W8, None, None), [("rtn", {})])


def test_a_cache_is_quantized_alone():
    config = PTQConfig(
        weight_quant_dtype=None, kvcache_quant_dtype="int8", kvcache_quant_granularity=QuantGranularity.PER_TOKEN
    )
    found = recipe(config, caches=CACHES)
    assert said(found, NAMES[0]) is None
    assert said(found, CACHES[1]) == ((None, None, C8_TOKEN), [("kv_cache", {})])


@pytest.mark.parametrize(
    ("switches", "weights", "inputs"),
    [
        ({"act_symmetric": True}, W8, A8.model_copy(update={"symmetric": True})),
        ({"weight_symmetric": False}, W8.model_copy(update={"symmetric": False}), None),
    ],
)
def test_switches_of_the_inner_configuration_count(switches, weights, inputs):
    config = PTQConfig(act_quant_dtype="int8" if inputs else None)
    assert said(recipe(config, **switches), NAMES[0])[0] == (weights, inputs, None)


def test_a_blacklist_holds_parts_of_names():
    found = recipe(PTQConfig(opname_blacklist=["w2", "lm_head"]))
    assert [name for name in NAMES if said(found, name) is None] == [n for n in NAMES if n.endswith("w2")]


def test_a_blacklist_does_not_look_into_the_word_network():
    """Golden Stick's does: there, "wo" keeps every layer of a "network" in floating point."""
    assert said(recipe(PTQConfig(opname_blacklist=["wo"])), NAMES[0]) is not None
    assert said(recipe(PTQConfig(opname_blacklist=["network.model.layers.0"])), NAMES[0]) is None


def test_expressions_are_matched_from_the_root_named_network():
    policies = {r"network\.model\.layers\.0\..*": PTQConfig(weight_quant_dtype="qint4x2"), r"model\..*": None}
    with pytest.warns(UserWarning, match=r"'model\\..*' matches no layer; layers look like 'network.model"):
        found = recipe(policies=policies)
    assert [said(found, name)[0][0].format for name in NAMES] == ["int4"] * 3 + ["int8"] * 3


def test_a_policys_own_blacklist_counts_where_it_applies():
    policies = {r".*\.layers\.1\..*": PTQConfig(weight_quant_dtype="qint4x2", opname_blacklist=["wo"])}
    found = recipe(PTQConfig(opname_blacklist=["w2"]), policies)
    stay = [name for name in NAMES if said(found, name) is None]
    assert stay == ["model.layers.0.feed_forward.w2", "model.layers.1.attention.wo"]


def test_a_policy_of_nothing_leaves_layers_in_floating_point():
    assert said(recipe(policies={r".*\.w2": PTQConfig(weight_quant_dtype=None)}), NAMES[2]) is None
    assert said(recipe(policies={r".*\.w2": None}), NAMES[2]) is None


def test_a_cache_follows_policies_too():
    policies = {r".*\.layers\.1\..*infer_attention": PTQConfig(weight_quant_dtype=None)}
    found = recipe(PTQConfig(kvcache_quant_dtype="int8"), policies, caches=CACHES)
    assert said(found, CACHES[0]) is not None
    assert said(found, CACHES[1]) is None


def test_a_fallback_is_a_simpler_treatment():
    config = PTQConfig(act_quant_dtype="int8", outliers_suppression=OutliersSuppressionType.SMOOTH)
    found = recipe(config, fallback_blacklist={"w2": LayerQuantizeAlgo.A16W8, "wo": "a8dynamic-w8"})
    assert said(found, NAMES[2]) == ((W8, None, None), [("rtn", {})])
    assert said(found, NAMES[1]) == ((W8, A8_TOKEN, None), [("rtn", {})])
    assert said(found, NAMES[0])[0] == (W8, A8, None)


def test_two_policies_for_one_layer_are_an_error_before_anything_runs():
    with pytest.raises(ValueError, match=r"'\.\*w2' and '\.\*feed\.\*' both match 'network.model.layers.0.feed"):
        recipe(policies={".*w2": PTQConfig(), ".*feed.*": PTQConfig(weight_quant_dtype="qint4x2")})


def test_a_policy_has_options_of_its_own():
    gptq = {"precision_recovery": PrecisionRecovery.GPTQ}
    policies = {".*w2": PTQConfig(**gptq, algo_args=GPTQQuantConfig(damp_percent=0.1))}
    found = recipe(PTQConfig(**gptq), policies)
    damping = [said(found, name)[1][0][1]["damping"] for name in NAMES[:3]]
    assert damping == [0.01, 0.01, 0.1]


@pytest.mark.parametrize(
    "values", [{"weight_quant_dtype": None}, {"opname_blacklist": ["layers"]}], ids=["no dtype", "all blacklisted"]
)
def test_nothing_to_quantize_is_an_error(values):
    with pytest.raises(ValueError, match="nothing to quantize"):
        recipe(PTQConfig(**values))


@pytest.mark.parametrize(
    ("policies", "words"),
    [
        ({"w2": PTQConfig()}, "expected an OrderedDict, got dict"),
        (OrderedDict({1: PTQConfig()}), "a key is a regular expression, got 1"),
        (OrderedDict({"(": PTQConfig()}), r"'\(' is not a regular expression"),
        (OrderedDict({"w2": "int8"}), "expected a PTQConfig, got 'int8'"),
    ],
)
def test_policies_are_an_ordered_dict_of_expressions_and_configurations(policies, words):
    with pytest.raises(TypeError, match=words):
        checked(policies)


@settings(deadline=None)
@given(
    st.lists(st.from_regex(r"model\.layers\.[0-9]\.[a-z.]{1,12}", fullmatch=True), min_size=1, unique=True),
    st.lists(st.text("abcw.", min_size=1, max_size=2), max_size=2),
    st.from_regex(r"\.\*[a-e]", fullmatch=True),
)
def test_every_layer_gets_what_golden_sticks_rules_say(names, blacklist, pattern):
    policy = PTQConfig(weight_quant_dtype="qint4x2", opname_blacklist=blacklist)
    expected = {
        name: (None if any(part in name for part in blacklist) else "int4")
        if re.match(pattern, f"network.{name}")
        else "int8"
        for name in names
    }
    if not any(expected.values()):
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = recipe(PTQConfig(), {pattern: policy}, names)
    assert {n: (rule := said(found, n)) and rule[0][0].format for n in names} == expected
