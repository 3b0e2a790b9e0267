"""The JSON Schema is generated, committed and shipped."""

from importlib.resources import files

from gs_schemas import NUMBER_FORMATS, SCHEMES
from gs_schemas.jsonschema import recipe_schema, recipe_schema_text


def test_the_committed_file_is_the_generated_one():
    committed = files("gs_schemas").joinpath("recipe.schema.json").read_text(encoding="utf-8")
    assert committed == recipe_schema_text(), (
        "run: python -m gs_schemas.jsonschema > schemas/src/gs_schemas/recipe.schema.json"
    )


def test_an_editor_can_complete_scheme_names_and_number_formats():
    schema = recipe_schema()
    by_name = [choice for choice in schema["properties"]["scheme"]["anyOf"] if choice.get("type") == "string"]
    assert by_name == [{"type": "string", "enum": sorted(SCHEMES)}]
    assert schema["$defs"]["QuantizationArgs"]["properties"]["format"]["enum"] == sorted(NUMBER_FORMATS)


def test_an_editor_underlines_unknown_fields():
    schema = recipe_schema()
    models = {"Recipe": schema, **schema["$defs"]}
    assert {name: model["additionalProperties"] for name, model in models.items()} == dict.fromkeys(models, False)


def test_what_a_recipe_must_say():
    assert recipe_schema()["required"] == ["scheme", "algorithms"]
