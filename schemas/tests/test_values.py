"""Single values of a recipe, changed by dotted path."""

import pytest

from gs_schemas import Recipe, SchemaError, parse_settings, recipe, with_values

GPTQ = recipe("w4a16-gptq")


def changed(*settings: str, start: Recipe = GPTQ) -> Recipe:
    return with_values(start, parse_settings(settings))


def refusal(*settings: str, start: Recipe = GPTQ) -> str:
    with pytest.raises(SchemaError) as refused:
        changed(*settings, start=start)
    return str(refused.value)


def test_a_field_of_the_scheme():
    found = changed("scheme.weights.group_size=64")
    assert found.scheme.weights.group_size == 64
    assert found.scheme.weights.format == "int4"
    assert GPTQ.scheme.weights.group_size == 128, "the preset itself stays as it is"


def test_an_option_of_an_algorithm_goes_by_the_algorithm_s_name():
    start = recipe("w8a8-smoothquant")
    found = changed("algorithms.smoothquant.alpha=0.7", start=start)
    assert [(a.name, a.options) for a in found.algorithms] == [("smoothquant", {"alpha": 0.7}), ("rtn", {})]


def test_all_options_of_an_algorithm():
    assert changed("algorithms.gptq={damping: 0.1, act_order: false}").algorithms[0].options == {
        "damping": 0.1,
        "act_order": False,
    }


def test_an_algorithm_has_one_set_of_options_wherever_it_is_named():
    start = Recipe.parse(
        {
            "scheme": "W4A16",
            "algorithms": ["gptq"],
            "overrides": [
                {"match": "*.o_proj", "scheme": "W8A16", "algorithms": ["gptq"]},
                {"match": "*.q_proj", "scheme": "W8A16", "algorithms": ["rtn"]},
                {"match": "*.k_proj", "scheme": None},
            ],
        }
    )
    found = changed("algorithms.gptq.damping=0.2", start=start)
    assert found.algorithms[0].options == {"damping": 0.2}
    assert found.overrides[0].algorithms[0].options == {"damping": 0.2}
    assert found.overrides[1].algorithms[0].options == {}


def test_lists_as_a_whole_and_by_position():
    assert changed('ignore=["*.o_proj"]').ignore == ["*.o_proj"]
    start = changed("overrides=[{match: '*.q_proj', scheme: W8A16}, {match: '*.k_proj', scheme: null}]")
    found = changed("overrides.1.scheme=W4A16_ASYM", start=start)
    assert [(o.match, o.scheme.name) for o in found.overrides] == [("*.q_proj", "W8A16"), ("*.k_proj", "W4A16_ASYM")]


def test_a_part_that_was_left_out():
    found = changed("scheme.inputs={format: int8, granularity: token, dynamic: true}")
    assert found.scheme.inputs.dynamic is True
    assert changed("scheme.inputs.format=int8", "scheme.inputs.granularity=tensor").scheme.inputs.format == "int8"


def test_settings_are_applied_in_order():
    found = changed("scheme=W4A16_ASYM", "scheme.weights.group_size=32", "scheme.weights.group_size=64")
    assert (found.scheme.weights.symmetric, found.scheme.weights.group_size) == (False, 64)
    assert found.scheme.describe() == "w int4 group 64 asym"


@pytest.mark.parametrize(
    ("text", "value"), [("1e-2", "1e-2"), ("0.01", 0.01), ("", None), ("'a=b'", "a=b"), ("[1, 2]", [1, 2])]
)
def test_values_are_yaml(text, value):
    assert parse_settings([f"algorithms.gptq.damping={text}"]) == {"algorithms.gptq.damping": value}


class TestNames:
    """Tables and reports call things by name, so a name must not outlive what it stood for."""

    def test_a_changed_scheme_loses_its_preset_name_and_the_recipe_name_has_the_change(self):
        found = changed("scheme.weights.group_size=64")
        assert found.scheme.describe() == "w int4 group 64"
        assert found.name == "w4a16-gptq with scheme.weights.group_size=64"

    def test_the_same_value_changes_nothing(self):
        assert changed("scheme.weights.observer=minmax") == GPTQ

    def test_a_scheme_with_a_given_group_size_loses_its_preset_name(self):
        assert changed("scheme.weights.group_size=128").scheme == GPTQ.scheme.model_copy(update={"name": None})

    def test_another_preset_brings_its_own_name(self):
        assert changed("scheme=W8A16").scheme.describe() == "W8A16"

    def test_a_scheme_named_by_the_user_keeps_that_name(self):
        found = changed("name=mine", "scheme.name=small", "scheme.weights.group_size=64")
        assert (found.name, found.scheme.name) == ("mine", "small")

    def test_the_scheme_of_an_override_loses_its_name_too(self):
        start = changed("overrides=[{match: '*.q_proj', scheme: W8A16}]")
        found = changed("overrides.0.scheme.weights.granularity=tensor", start=start)
        assert found.overrides[0].scheme.describe() == "w int8 tensor"
        assert found.scheme.name == "W4A16"

    def test_an_option_changes_the_recipe_but_not_its_scheme(self):
        found = changed("algorithms.gptq.damping=0.05")
        assert (found.name, found.scheme.name) == ("w4a16-gptq with algorithms.gptq.damping=0.05", "W4A16")

    def test_changes_add_up_in_the_name(self):
        found = changed("format=other", start=changed("calibration.samples=64"))
        assert found.name == "w4a16-gptq with calibration.samples=64, format=other"

    def test_a_recipe_without_a_name_gets_none(self):
        assert changed("format=other", start=GPTQ.model_copy(update={"name": None})).name is None


class TestRefusals:
    def test_an_unknown_field_at_the_top(self):
        assert "calibraton: no such field" in refusal("calibraton.samples=3")
        assert "Did you mean 'calibration'?" in refusal("calibraton.samples=3")

    def test_an_unknown_field_deep_down(self):
        assert "Did you mean 'group_size'?" in refusal("scheme.weights.group_sze=3")

    def test_an_algorithm_that_the_recipe_does_not_have(self):
        assert refusal("algorithms.gtpq.damping=3") == (
            "recipe: no algorithm of this recipe named 'gtpq'; there are: gptq. Did you mean 'gptq'?"
        )

    def test_a_path_below_a_plain_value(self):
        assert refusal("scheme.weights.group_size.x=3") == (
            "recipe: scheme.weights.group_size.x: scheme.weights.group_size is 128, nothing is below it"
        )

    @pytest.mark.parametrize("position", ["1", "-1", "first"])
    def test_a_position_outside_a_list(self, position):
        assert refusal(f"ignore.{position}=a") == (
            f"recipe: ignore.{position}: ignore is a list of 1; '{position}' is no position in it, from 0"
        )

    def test_a_value_that_is_not_allowed(self):
        assert "the nearest: W8A8, " in refusal("scheme=W8A9")
        assert "calibration.samples: got 'many'" in refusal("calibration.samples=many")

    def test_values_that_do_not_fit_together(self):
        assert "granularity 'group' needs group_size" in refusal("scheme.weights.group_size=null")

    @pytest.mark.parametrize("setting", ["scheme.weights", "=3", ""])
    def test_no_path_or_no_value(self, setting):
        assert refusal(setting) == f"'{setting}': expected path=value, such as scheme.weights.group_size=64"

    def test_a_pattern_without_quotes(self):
        assert refusal("ignore=[*.o_proj]") == (
            "ignore: '[*.o_proj]' is not YAML; a pattern needs quotes, as in ignore=['*.o_proj']"
        )
