"""A preset gets a smaller group size if its own does not divide. A size from the user is then an error with advice."""

import pytest

from gs_core import PlanError, api
from gs_core.engines import fused_with
from gs_core.interfaces import LayerInfo
from gs_core.planning import fit_groups, is_preset, shared_in_features
from gs_core.testing import ToyAdapter
from gs_schemas import SCHEMES, Recipe, recipe, with_values

pytestmark = pytest.mark.usefixtures("plugins")


def preset() -> Recipe:
    return Recipe.parse({"scheme": "W4A16", "algorithms": ["round"], "format": "plain"})


def layer(name: str, in_features: int) -> LayerInfo:
    return LayerInfo(name, 0, (64, in_features), f"{name}:input", "bfloat16")


@pytest.mark.parametrize(("in_features", "size"), [(576, 64), (96, 32), (1120, 32)])
def test_a_preset_takes_the_largest_smaller_size_that_divides(in_features, size):
    scheme, why = fit_groups(SCHEMES["W4A16"], [in_features])
    assert scheme.weights == SCHEMES["W4A16"].weights.model_copy(update={"group_size": size})
    assert scheme.name == f"W4A16_G{size}"
    assert why == f"groups of {size}: 128 does not divide in_features {in_features}"


def test_a_preset_whose_size_divides_stays_as_it_is():
    assert fit_groups(SCHEMES["W4A16"], [256]) is None


def test_a_preset_never_falls_back_to_larger_groups():
    assert fit_groups(SCHEMES["W2A16"], [48]) is None


def test_fused_layers_fall_back_together():
    layers = [
        layer("m.0.mlp.experts.0.up_proj", 1024),
        layer("m.0.mlp.experts.0.down_proj", 192),
        layer("m.0.mlp.experts.1.down_proj", 192),
        layer("m.0.self_attn.q_proj", 1024),
    ]
    shared = shared_in_features(layers)
    assert shared["m.0.mlp.experts.0.up_proj"] == {1024, 192}
    assert shared["m.0.self_attn.q_proj"] == {1024}
    scheme, why = fit_groups(SCHEMES["W4A16"], shared["m.0.mlp.experts.0.up_proj"])
    assert scheme.weights.group_size == 64
    assert why == "groups of 64: 128 does not divide in_features 192"


def test_projections_of_one_family_are_fused_and_others_are_not():
    names = [f"m.1.self_attn.{n}_proj" for n in "qkvo"]
    assert len({fused_with(name) for name in names}) == 2
    assert (
        fused_with("m.1.mlp.experts.3.w1") == fused_with("m.1.mlp.experts.12.w2") != fused_with("m.2.mlp.experts.3.w1")
    )


def test_a_scheme_with_a_given_group_size_is_not_a_preset():
    for size in (64, 128):
        assert not is_preset(with_values(recipe("w4a16-rtn"), {"scheme.weights.group_size": size}).scheme)


def test_a_plan_says_which_layers_fall_back(toy):
    made = api.plan(toy, preset(), adapter=ToyAdapter())
    rows = {row.layer.name: row for row in made.rows}
    assert rows["blocks.0.down"].scheme.name == "W4A16_G32"
    assert "groups of 32: 128 does not divide in_features 96" in rows["blocks.0.down"].reason


def test_a_size_that_the_user_wrote_is_an_error_with_the_flag(toy):
    asked = with_values(preset(), {"scheme.weights.group_size": 64})
    with pytest.raises(PlanError) as caught:
        api.plan(toy, asked, adapter=ToyAdapter())
    assert "group_size 64 does not divide in_features 96. Use --group-size 96 (or 32)" in str(caught.value)
