"""The JSON Schema of a recipe, for editors and other programs. ``recipe.schema.json`` beside this file holds it.

After a change to the models: ``python -m gs_schemas.jsonschema > schemas/src/gs_schemas/recipe.schema.json``.
"""

import json
from typing import Any

from gs_schemas.presets import SCHEMES
from gs_schemas.recipe import Recipe

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def recipe_schema() -> dict[str, Any]:
    """What a recipe file may hold, as plain data."""
    schema = Recipe.model_json_schema()
    for holder in (schema, schema["$defs"]["Override"]):
        by_name = next(choice for choice in holder["properties"]["scheme"]["anyOf"] if choice.get("type") == "string")
        by_name["enum"] = sorted(SCHEMES)
    return {"$schema": DIALECT, **schema}


def recipe_schema_text() -> str:
    """The content of ``recipe.schema.json``."""
    return json.dumps(recipe_schema(), indent=2) + "\n"


if __name__ == "__main__":
    print(recipe_schema_text(), end="")
