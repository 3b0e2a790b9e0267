"""Presets under the names the field uses (compressed-tensors' for schemes)."""

from typing import Any

from gs_schemas.errors import SchemaError, unknown
from gs_schemas.recipe import Recipe
from gs_schemas.scheme import QuantizationArgs, QuantizationScheme

_INT4 = QuantizationArgs(format="int4", granularity="group", group_size=128)
_INT3 = QuantizationArgs(format="int3", granularity="group", group_size=128)
_INT2 = QuantizationArgs(format="int2", granularity="group", group_size=32)
_INT4_CHANNEL = QuantizationArgs(format="int4", granularity="channel")
_INT8 = QuantizationArgs(format="int8", granularity="channel")
_INT8_TOKEN = QuantizationArgs(format="int8", granularity="token", dynamic=True)
_INT4_TOKEN = QuantizationArgs(format="int4", granularity="token", dynamic=True)
_INT8_TENSOR = QuantizationArgs(format="int8", granularity="tensor", symmetric=True)

_LAYERS = (
    QuantizationScheme(name="W4A16", weights=_INT4),
    QuantizationScheme(name="W4A16_ASYM", weights=_INT4.model_copy(update={"symmetric": False})),
    QuantizationScheme(name="W3A16", weights=_INT3),
    QuantizationScheme(name="W2A16", weights=_INT2),
    QuantizationScheme(name="W8A16", weights=_INT8),
    QuantizationScheme(name="W8A8", weights=_INT8, inputs=_INT8_TOKEN),
    QuantizationScheme(name="W8A8_STATIC", weights=_INT8, inputs=_INT8_TENSOR),
    QuantizationScheme(name="W4A4", weights=_INT4, inputs=_INT4_TOKEN),
    QuantizationScheme(name="W4A4_CHANNEL", weights=_INT4_CHANNEL, inputs=_INT4_TOKEN),
)
_CACHES = (
    QuantizationScheme(name="KV8", kv_cache=_INT8_TENSOR),
    QuantizationScheme(name="KV_FP8", kv_cache=QuantizationArgs(format="fp8_e4m3", granularity="tensor")),
)
_BOTH = tuple(
    layers.model_copy(update={"name": f"{layers.name}_{caches.name}", "kv_cache": caches.kv_cache})
    for layers in _LAYERS
    for caches in _CACHES
    if layers.name in ("W4A16", "W8A16", "W8A8")
)

SCHEMES: dict[str, QuantizationScheme] = {scheme.name: scheme for scheme in (*_LAYERS, *_CACHES, *_BOTH) if scheme.name}

# Four bits leave no room for outliers anywhere: R4 too, for engines that compute it.
_HADAMARD = {"hadamard": {"r4": True}}
_FLATQUANT = {"flatquant": {"epochs": 5, "lac": True}}
# The field has a name of its own for GPTQ with this option. At four bits its fitted targets want more damping.
_GPTAQ = {"gptq": {"asymmetric": True, "sweeps": 4, "damping": 0.05}}
# The fewer the bits, the more there is to gain from looking again.
_SWEEPS = {"gptq": {"sweeps": 4}}
_FEW_GPTAQ = {"gptq": {"asymmetric": True, "sweeps": 4}}
# What is known of the outputs takes more sweeps to come to rest, and leaves less to be had from fitting the inputs.
_GUIDED = {"gptq": {"asymmetric": True, "guided": True, "sweeps": 8, "damping": 0.1}}
# One scale for a whole activation leaves less room than one for each token: each site finds its own balance.
_SMOOTH = {"smoothquant": {"alpha": "auto"}}
_MIXED = {"mixed_precision": {"bits": 5, "candidates": ["W4A16", "W8A16"]}}
_ALGORITHMS: dict[str, tuple[list[str | dict[str, Any]], ...]] = {
    "W4A16": (
        ["rtn"],
        ["gptq"],
        [_GPTAQ],
        ["awq"],
        ["awq", "gptq"],
        ["hadamard", _GPTAQ],
        ["hadamard", _GUIDED],
        ["autoround"],
        [_MIXED, "gptq"],
    ),
    "W4A16_ASYM": (["rtn"], ["gptq"], ["awq"], ["autoround"]),
    "W3A16": ([_SWEEPS], [_FEW_GPTAQ], ["hadamard", _FEW_GPTAQ], ["hadamard", _GUIDED]),
    "W2A16": ([_SWEEPS], [_FEW_GPTAQ], ["hadamard", _FEW_GPTAQ], ["hadamard", _GUIDED]),
    "W8A16": (["rtn"], ["gptq"]),
    "W8A8": (["rtn"], ["gptq"], ["smoothquant", "rtn"], ["smoothquant", "gptq"], ["osp", "rtn"]),
    "W8A8_STATIC": (["rtn"], ["gptq"], [_SMOOTH, "rtn"], [_SMOOTH, "gptq"], ["osp", "rtn"]),
    "W4A4": (["rtn"], [_HADAMARD, "rtn"], [_HADAMARD, "gptq"]),
    "W4A4_CHANNEL": ([_FLATQUANT], [_FLATQUANT, "gptq"]),
    "KV8": (["kv_cache"],),
    "KV_FP8": (["kv_cache"],),
    "W4A16_KV8": (["gptq", "kv_cache"],),
    "W4A16_KV_FP8": (["gptq", "kv_cache"],),
    "W8A16_KV8": (["rtn", "kv_cache"],),
    "W8A16_KV_FP8": (["rtn", "kv_cache"],),
    "W8A8_KV8": (["smoothquant", "rtn", "kv_cache"],),
    "W8A8_KV_FP8": (["smoothquant", "rtn", "kv_cache"],),
}
# What flatquant leaves to be computed, and scales per channel, are for Ascend's engines.
_FORMATS = {"W4A4_CHANNEL": "ascend"}


def _called(algorithm: str | dict[str, Any]) -> list[str]:
    if isinstance(algorithm, str):
        return [algorithm]
    options = algorithm.get("gptq", {})
    kind = "guided" if options.get("guided") else "gptaq" if options.get("asymmetric") else None
    return [kind] if kind else list(algorithm)


def _recipe_name(scheme: str, algorithms: list[str | dict[str, Any]]) -> str:
    # "w8a8-smoothquant" leaves the rounding to rtn unsaid, as the field does; who sees to the cache, the scheme says.
    layers = [name for algorithm in algorithms for name in _called(algorithm) if name != "kv_cache"]
    tail = layers if len(layers) == 1 else [a for a in layers if a != "rtn"]
    return "-".join([scheme.removesuffix("_CHANNEL"), *tail]).lower().replace("_", "-")


RECIPES: dict[str, Recipe] = {
    name: Recipe.model_validate(
        {"name": name, "scheme": SCHEMES[scheme], "algorithms": algorithms}
        | ({"format": _FORMATS[scheme]} if scheme in _FORMATS else {})
    )
    for scheme, choices in _ALGORITHMS.items()
    for algorithms in choices
    for name in [_recipe_name(scheme, algorithms)]
}


def named(scheme: QuantizationScheme) -> QuantizationScheme:
    """The preset that has these numbers, or else the scheme as it is."""
    return next((s for s in SCHEMES.values() if s == scheme.model_copy(update={"name": s.name})), scheme)


# Unsupported schemes of compressed-tensors and llm-compressor → the nearest supported scheme.
NEAREST_SCHEMES = {
    "FP8": "W8A8_STATIC",
    "FP8_BLOCK": "W8A8",
    "FP8_DYNAMIC": "W8A8",
    "MXFP4": "W4A16",
    "MXFP8": "W8A8",
    "NVFP4": "W4A4",
    "NVFP4A16": "W4A16",
    "W4A8": "W4A16",
    "W4AFP8": "W4A16",
}


def unknown_recipe(name: str) -> str:
    """An error message for a name that is no preset recipe. It names the nearest recipes, or those with the scheme."""
    scheme = name.upper().replace("-", "_")
    nearest = NEAREST_SCHEMES.get(scheme, scheme)
    fitting = ", ".join(known for known, preset in RECIPES.items() if preset.scheme.name == nearest)
    if scheme in SCHEMES:
        return f"{scheme} is a scheme, not a recipe; recipes with it: {fitting}."
    if scheme in NEAREST_SCHEMES:
        return f"scheme {scheme} is not supported yet; the nearest is {nearest}, in these recipes: {fitting}."
    return unknown("recipe", name, RECIPES, "gsq recipes")


def recipe(name: str) -> Recipe:
    """The preset recipe of that name. Raises ``SchemaError`` naming the nearest one."""
    if name not in RECIPES:
        raise SchemaError("recipe", [unknown_recipe(name)])
    return RECIPES[name]
