"""The arguments that several commands share."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from gs_schemas import Recipe

Model = Annotated[str, typer.Argument(metavar="MODEL", help="A checkpoint folder: config.json and safetensors.")]
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
        "--calibration", metavar="PATH", help="Text file, folder, .jsonl or .npy of token ids.", show_default=False
    ),
]
Samples = Annotated[int | None, typer.Option(min=1, metavar="N", help="Calibration samples.", show_default=False)]
SeqLen = Annotated[int | None, typer.Option(min=2, metavar="L", help="Tokens in each of them.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def read_recipe(name: str, settings: list[str] | None) -> "Recipe":
    """The recipe with ``--set`` applied. Raises ``PlanError`` or ``SchemaError``."""
    from gs_core.api import resolve_recipe
    from gs_schemas import parse_settings, with_values

    return with_values(resolve_recipe(name), parse_settings(settings or []))
