"""The arguments that several commands share."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from gs_schemas import Recipe

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A checkpoint folder, or a hub id in the local cache.")]
RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A name from `gsq recipes`, or a YAML or JSON file.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        help="Change one value of the recipe: scheme.weights.group_size=64, algorithms.gptq.damping=0.05. "
        "May be given many times.",
    ),
]
GroupSize = Annotated[
    int | None,
    typer.Option(
        "--group-size",
        min=1,
        metavar="N",
        help="Input features per scale. The default is the recipe's. Where a preset's size does not divide, 64 or 32.",
        show_default=False,
    ),
]
Format = Annotated[
    str | None, typer.Option(metavar="NAME", help="Checkpoint format, instead of the recipe's.", show_default=False)
]
Device = Annotated[str, typer.Option(metavar="DEVICE", help="Where to compute, as the framework calls it: cuda:0.")]
Adapter = Annotated[
    str | None,
    typer.Option(
        "--adapter",
        metavar="NAME",
        help="What opens the model, instead of the first that can; `gsq plugins` lists them.",
        show_default=False,
    ),
]
Calibration = Annotated[
    str | None,
    typer.Option(
        "--calibration",
        metavar="DATA",
        help="A text, .jsonl, .json, .csv, .parquet, .arrow or .npy file, a folder, or a dataset's hub id.",
        show_default=False,
    ),
]
Samples = Annotated[int | None, typer.Option(min=1, metavar="N", help="Calibration samples.", show_default=False)]
SeqLen = Annotated[int | None, typer.Option(min=2, metavar="L", help="Tokens in each sample.", show_default=False)]
TrustRemoteCode = Annotated[
    bool,
    typer.Option(
        "--trust-remote-code",
        help="Run Python code from the model folder. Without this flag no code from it runs.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def read_recipe(name: str, settings: list[str] | None, group_size: int | None = None) -> "Recipe":
    """The recipe with ``--set`` and ``--group-size`` applied. Raises ``PlanError`` or ``SchemaError``."""
    from gs_core.api import resolve_recipe
    from gs_core.errors import PlanError
    from gs_schemas import parse_settings, with_values

    recipe = with_values(resolve_recipe(name), parse_settings(settings or []))
    if group_size is None:
        return recipe
    if recipe.scheme.weights is None:
        raise PlanError([f"--group-size {group_size}: recipe {name} quantizes no weights; remove the option"])
    return with_values(recipe, {"scheme.weights.granularity": "group", "scheme.weights.group_size": group_size})
