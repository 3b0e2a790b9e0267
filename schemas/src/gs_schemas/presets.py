"""Presets under the names the field uses (compressed-tensors' for schemes)."""

from gs_schemas.errors import SchemaError, unknown
from gs_schemas.recipe import Recipe
from gs_schemas.scheme import QuantizationArgs, QuantizationScheme

_INT4 = QuantizationArgs(format="int4", granularity="group", group_size=128)
_INT8 = QuantizationArgs(format="int8", granularity="channel")
_INT8_TOKEN = QuantizationArgs(format="int8", granularity="token", dynamic=True)
_INT8_TENSOR = QuantizationArgs(format="int8", granularity="tensor", symmetric=True)

SCHEMES: dict[str, QuantizationScheme] = {
    scheme.name: scheme
    for scheme in (
        QuantizationScheme(name="W4A16", weights=_INT4),
        QuantizationScheme(name="W4A16_ASYM", weights=_INT4.model_copy(update={"symmetric": False})),
        QuantizationScheme(name="W8A16", weights=_INT8),
        QuantizationScheme(name="W8A8", weights=_INT8, inputs=_INT8_TOKEN),
        QuantizationScheme(name="W8A8_STATIC", weights=_INT8, inputs=_INT8_TENSOR),
    )
    if scheme.name
}

_ALGORITHMS = {
    "W4A16": (["rtn"], ["gptq"]),
    "W4A16_ASYM": (["rtn"], ["gptq"]),
    "W8A16": (["rtn"], ["gptq"]),
    "W8A8": (["rtn"], ["gptq"], ["smoothquant", "rtn"], ["smoothquant", "gptq"]),
    "W8A8_STATIC": (["rtn"], ["gptq"], ["smoothquant", "rtn"], ["smoothquant", "gptq"]),
}


def _recipe_name(scheme: str, algorithms: list[str]) -> str:
    # "w8a8-smoothquant" leaves the rounding to rtn unsaid, as the field does.
    tail = algorithms if len(algorithms) == 1 else [a for a in algorithms if a != "rtn"]
    return "-".join([scheme.lower().replace("_", "-"), *tail])


RECIPES: dict[str, Recipe] = {
    name: Recipe.model_validate({"name": name, "scheme": SCHEMES[scheme], "algorithms": algorithms})
    for scheme, choices in _ALGORITHMS.items()
    for algorithms in choices
    for name in [_recipe_name(scheme, algorithms)]
}


def named(scheme: QuantizationScheme) -> QuantizationScheme:
    """The preset that has these numbers, or else the scheme as it is."""
    return next((s for s in SCHEMES.values() if s == scheme.model_copy(update={"name": s.name})), scheme)


def recipe(name: str) -> Recipe:
    """The preset recipe of that name. Raises ``SchemaError`` naming the nearest one."""
    if name not in RECIPES:
        raise SchemaError("recipe", [unknown("recipe", name, RECIPES)])
    return RECIPES[name]
