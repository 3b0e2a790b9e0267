"""Recipes, schemes, number formats and presets of Golden Stick: pydantic models, no framework."""

from gs_schemas.errors import SchemaError, did_you_mean, unknown, validate
from gs_schemas.loading import load_yaml
from gs_schemas.numbers import NUMBER_FORMATS, NumberFormat
from gs_schemas.presets import RECIPES, SCHEMES, named, recipe, unknown_recipe
from gs_schemas.recipe import AlgorithmSpec, Calibration, Override, Recipe, matches
from gs_schemas.scheme import QuantizationArgs, QuantizationScheme, Strict
from gs_schemas.values import parse_settings, with_values

__all__ = [
    "NUMBER_FORMATS",
    "RECIPES",
    "SCHEMES",
    "AlgorithmSpec",
    "Calibration",
    "NumberFormat",
    "Override",
    "QuantizationArgs",
    "QuantizationScheme",
    "Recipe",
    "SchemaError",
    "Strict",
    "did_you_mean",
    "load_yaml",
    "matches",
    "named",
    "parse_settings",
    "recipe",
    "unknown",
    "unknown_recipe",
    "validate",
    "with_values",
]
