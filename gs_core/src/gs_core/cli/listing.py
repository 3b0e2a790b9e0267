"""``gsq plugins``, ``gsq recipes`` and ``gsq schema``: what there is to choose from."""

from typing import Annotated, Any

import typer

from gs_core.cli.errors import CANNOT_BE_PLANNED, one_line_errors, stop
from gs_core.cli.output import print_json, print_table


@one_line_errors
def plugins(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the installed plugins, and whether each one works."""
    from gs_core import discovery

    rows: list[dict[str, Any]] = [
        {
            "kind": plugin.kind,
            "name": plugin.name,
            "distribution": plugin.distribution,
            "version": plugin.version,
            "status": discovery.status(plugin),
        }
        for kind in discovery.GROUPS
        for plugin in discovery.installed(kind).values()
    ]
    if as_json:
        print_json(rows)
    else:
        headers = ["kind", "name", "distribution", "version", "status"]
        print_table(headers, [[row[header] for header in headers] for row in rows])


@one_line_errors
def recipes(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Print this one as YAML.", show_default=False)
    ] = None,
) -> None:
    """List the recipes that come with gsq. Save one with `gsq recipes NAME > recipe.yaml`, then change it."""
    import gs_schemas

    if name is not None:
        if name not in gs_schemas.RECIPES:
            stop([gs_schemas.unknown_recipe(name)], CANNOT_BE_PLANNED)
        typer.echo(gs_schemas.RECIPES[name].to_yaml(), nl=False)
        return
    rows = [
        [name, recipe.scheme.describe(), ", ".join(a.name for a in recipe.algorithms), _numbers(recipe.scheme)]
        for name, recipe in gs_schemas.RECIPES.items()
    ]
    print_table(["recipe", "scheme", "algorithms", "numbers"], rows)


def _numbers(scheme: Any) -> str:
    """What the scheme's name stands for."""
    return scheme.model_copy(update={"name": None}).describe()


@one_line_errors
def schema() -> None:
    """Print the JSON Schema of recipe files."""
    from gs_schemas.jsonschema import recipe_schema_text

    typer.echo(recipe_schema_text(), nl=False)
