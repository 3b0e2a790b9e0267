"""Errors that say what was probably meant."""

import pytest

from gs_schemas import Strict, did_you_mean, unknown, validate
from gs_schemas.errors import SchemaError


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("smooth_quant", "smoothquant"),
        ("SmoothQuant", "smoothquant"),
        ("smoothqaunt", "smoothquant"),
        ("GPTQ", "gptq"),
        ("gpt-q", "gptq"),
        ("awq", None),
        ("", None),
    ],
)
def test_the_nearest_name_whatever_its_case_and_dashes(given, meant):
    assert did_you_mean(given, ["gptq", "rtn", "smoothquant"]) == (f" Did you mean '{meant}'?" if meant else "")


def test_an_unknown_name_is_one_sentence():
    assert unknown("algorithm", "gtpq", {"rtn": 1, "gptq": 2}) == (
        "no algorithm named 'gtpq'; there are: gptq, rtn. Did you mean 'gptq'?"
    )
    assert unknown("kernel", "fast", []) == "no kernel named 'fast'; there are: none."


class Options(Strict):
    damping: float = 0.01


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"dampng": 1}, "dampng: no such field; fields: damping. Did you mean 'damping'?"),
        (
            {"damping": "much"},
            "damping: got 'much'. Input should be a valid number, unable to parse string as a number",
        ),
        ({"damping": float("nan")}, "damping: got nan. Input should be a finite number"),
        ({"damping": None}, "damping: got None. Input should be a valid number"),
    ],
)
def test_options_of_plugins_are_told_the_same_way(given, problem):
    with pytest.raises(SchemaError) as caught:
        validate(Options, given, "gptq")
    assert caught.value.problems == [problem]
    assert str(caught.value) == f"gptq: {problem}"
    assert caught.value.__cause__ is None
