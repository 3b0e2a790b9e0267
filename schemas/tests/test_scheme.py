"""What a scheme may say, and what each contradiction in one is told."""

import pytest

from gs_schemas import QuantizationArgs, QuantizationScheme, SchemaError, validate


def refusal(**fields):
    with pytest.raises(SchemaError) as caught:
        validate(QuantizationArgs, fields, "weights")
    (problem,) = caught.value.problems
    return problem


def scheme_refusal(**fields):
    with pytest.raises(SchemaError) as caught:
        validate(QuantizationScheme, fields, "scheme")
    (problem,) = caught.value.problems
    return problem


def test_defaults_are_the_plainest_numbers():
    args = QuantizationArgs(format="int8")
    assert (args.granularity, args.symmetric, args.dynamic, args.observer) == ("channel", True, False, "minmax")
    assert (args.scale_format, args.global_scale, args.zero_point, args.after) == ("model", False, "int", None)
    assert (args.bits, args.number.name) == (8, "int8")


@pytest.mark.parametrize(
    "fields",
    [
        {"format": "fp4_e2m1", "granularity": "group", "group_size": 32, "scale_format": "e8m0"},
        {
            **{"format": "fp4_e2m1", "granularity": "group", "group_size": 16, "scale_format": "fp8_e4m3"},
            **{"global_scale": True, "dynamic": "local"},
        },
        {"format": "mx6", "granularity": "group", "group_size": 16},
        {"format": "bfp16", "granularity": "group", "group_size": 8},
        {"format": "fp8_e4m3", "granularity": "block", "block_size": (128, 128), "scale_format": "float32"},
        {"format": "uint4", "granularity": "group", "group_size": 128, "symmetric": False, "zero_point": "float"},
        {"format": "int4", "granularity": "channel", "after": {"format": "int8", "granularity": "channel"}},
    ],
    ids=["MXFP4", "NVFP4 activations", "MX6", "BFP16", "FP8 blocks", "float zero points", "two stages"],
)
def test_the_compound_formats_of_the_field_can_be_said(fields):
    args = validate(QuantizationArgs, fields, "weights")
    assert QuantizationArgs.model_validate_json(args.model_dump_json()) == args


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"group_size": 64}, "group_size needs granularity 'group', got 'channel'"),
        ({"observer": "percentile"}, "observer 'percentile' and a value for percentile (99.9, say) go together"),
        ({"percentile": 99.9}, "observer 'percentile' and a value for percentile (99.9, say) go together"),
        ({"granularity": "group"}, "granularity 'group' needs group_size"),
        ({"block_size": (2, 2)}, "block_size needs granularity 'block', got 'channel'"),
        ({"granularity": "block"}, "granularity 'block' needs block_size"),
        (
            {"format": "fp8_e4m3", "symmetric": False},
            "symmetric must be true for 'fp8_e4m3', which has no zero point",
        ),
        ({"format": "uint4"}, "'uint4' is unsigned: symmetric must be false, or use 'int4'"),
        ({"format": "mx9"}, "'mx9' shares exponents in blocks: use granularity 'group', group_size 16"),
        (
            {"format": "bfp16", "granularity": "group", "group_size": 16},
            "'bfp16' shares exponents in blocks: use granularity 'group', group_size 8",
        ),
        ({"global_scale": True}, "global_scale needs a narrow scale_format with a range to share, such as 'fp8_e4m3'"),
        ({"granularity": "group", "group_size": 0}, "group_size: got 0. Input should be greater than 0"),
        ({"granularity": "group", "group_size": 1.5}, "group_size: got 1.5. Input should be a valid integer"),
        ({"granularity": "block", "block_size": (2, -1)}, "block_size.1: got -1. Input should be greater than 0"),
    ],
)
def test_numbers_that_contradict_themselves(fields, message):
    assert message in refusal(**{"format": "int8"} | fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weights": {"dynamic": True}}, "weights: dynamic must be false, a weight does not change at run time"),
        ({"weights": {"granularity": "token"}}, "weights: a weight has no 'token' granularity"),
        ({"weights": {"granularity": "head"}}, "weights: a weight has no 'head' granularity"),
        (
            {"inputs": {"granularity": "token"}},
            "inputs: a scale per token is only known at run time; set dynamic: true",
        ),
        ({"inputs": {"granularity": "channel"}}, "inputs: use granularity 'tensor', 'token', 'group' or 'block'"),
        (
            {"kv_cache": {"granularity": "block", "block_size": (2, 2)}},
            "kv_cache: use granularity 'tensor', 'channel', 'head', 'token' or 'group'",
        ),
        (
            {"kv_cache": {"granularity": "token"}},
            "kv_cache: a scale for every token is only known at run time; set dynamic: true",
        ),
        (
            {"kv_cache": {"granularity": "channel", "dynamic": True}},
            "kv_cache: a scale per channel spans tokens that are still to come; "
            "set dynamic: false, or use granularity 'token', 'head' or 'group'",
        ),
    ],
)
def test_numbers_in_the_wrong_place(fields, message):
    given = {part: {"format": "int8"} | args for part, args in fields.items()}
    assert message in scheme_refusal(**given)


def test_a_scheme_is_frozen():
    with pytest.raises(ValueError, match="frozen"):
        QuantizationArgs(format="int8").format = "int4"


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "float"),
        ({"name": "W4A16"}, "W4A16"),
        (
            {"weights": {"format": "int4", "granularity": "group", "group_size": 32, "symmetric": False}},
            "w int4 group 32 asym",
        ),
        (
            {
                "weights": {"format": "int8", "granularity": "block", "block_size": (128, 128)},
                "inputs": {"format": "int8", "granularity": "token", "dynamic": True},
                "kv_cache": {"format": "fp8_e4m3", "granularity": "tensor"},
            },
            "w int8 block (128, 128), a int8 token dynamic, kv fp8_e4m3 tensor",
        ),
    ],
)
def test_a_scheme_describes_itself(fields, text):
    assert validate(QuantizationScheme, fields, "scheme").describe() == text
