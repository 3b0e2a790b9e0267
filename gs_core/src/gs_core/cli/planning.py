"""``gsq plan``: what ``gsq quantize`` would do."""

from contextlib import nullcontext
from dataclasses import asdict
from math import prod
from typing import TYPE_CHECKING, Any

import typer

from gs_core.cli.arguments import (
    Adapter,
    AsJson,
    Calibration,
    Device,
    Format,
    GroupSize,
    Model,
    RecipeName,
    Samples,
    SeqLen,
    Settings,
    TrustRemoteCode,
    read_recipe,
)
from gs_core.cli.errors import one_line_errors
from gs_core.cli.output import print_json, print_table
from gs_core.cli.text import collapse, count, opens_in, plural, size

if TYPE_CHECKING:
    from gs_core.planning import Plan

COLUMNS = ("layer", "scheme", "algorithms", "adapter", "format", "kernel", "why")


@one_line_errors
def plan(
    model: Model,
    recipe: RecipeName,
    format: Format = None,
    calibration: Calibration = None,
    samples: Samples = None,
    seq_len: SeqLen = None,
    set: Settings = None,
    group_size: GroupSize = None,
    device: Device = "cpu",
    adapter: Adapter = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Show what quantize would do to each layer, and why. Reads no weights, and needs no calibration data unless the
    recipe leaves the choice of schemes to be measured.

    Exits with 2, and every reason, when it cannot be done.
    """
    from gs_core import allocation, api
    from gs_core.cli.progress import watching

    asked = api.resolve_recipe(read_recipe(recipe, set, group_size))
    measures = allocation.allocator_of(asked) is not None
    with watching(f"opening {model}") if measures else nullcontext(_silent) as progress:
        made = api.plan(
            model,
            asked,
            format=format,
            device=device,
            adapter=adapter,
            trust_remote_code=trust_remote_code,
            calibration=calibration,
            samples=samples,
            seq_len=seq_len,
            progress=progress,
        )
    counted = totals(made, measures)
    if as_json:
        print_json(
            {
                "model": made.model.name,
                "recipe": made.recipe.model_dump(mode="json"),
                "device": made.device,
                "layers": made.table(),
                "engines": [asdict(engine) for engine in made.engines],
                "notes": list(made.notes),
                "warnings": list(made.warnings),
                "totals": counted,
            }
        )
        return
    typer.echo(f"{made.model.name}: adapter {made.adapter}, format {made.recipe.format}, device {made.device}")
    if made.source is not None:
        typer.echo(f"The source is already quantized as {made.source.schemes}: {size(made.source.nbytes)}.")
    typer.echo()
    dropped = print_table(COLUMNS, collapsed(made.table()), droppable=("kernel", "adapter", "format"))
    if dropped:
        typer.echo(f"(a wider terminal, or --json, shows: {', '.join(dropped)})")
    typer.echo()
    for note in made.notes:
        typer.echo(note)
    for warning in made.warnings:
        typer.secho("warning: ", fg="yellow", bold=True, nl=False)
        typer.echo(warning)
    if opens := opens_in([asdict(engine) for engine in made.engines]):
        typer.echo(f"opens {'; '.join(opens)}")
    typer.echo(summary(counted))


def collapsed(table: list[dict[str, Any]]) -> list[list[str]]:
    """The rows of ``Plan.table``, one for all layers that differ in their numbers alone."""
    layers: dict[tuple[str, ...], list[str]] = {}
    for row in table:
        rest = tuple(", ".join(row[c]) if c == "algorithms" else row[c] for c in COLUMNS[1:])
        layers.setdefault(rest, []).append(row["layer"])
    return [[name, *rest] for rest, names in layers.items() for name in collapse(names)]


def _silent(stage: str, block: int, blocks: int) -> None: ...


def totals(made: "Plan", measures: bool) -> dict[str, Any]:
    """Counts of layers and parameters, and sizes in bytes. measures: the plan itself was made with calibration data."""
    from gs_core.planning import planned_bytes

    quantized = [row for row in made.rows if row.scheme is not None]
    caches = [row for row in made.caches if row.args is not None]
    return {
        "blocks": len(made.model.blocks),
        "layers_quantized": len(quantized),
        "layers_kept": len(made.table()) - len(made.caches) - len(quantized),
        "caches_quantized": len(caches),
        "parameters_quantized": sum(prod(row.layer.shape) for row in quantized),
        "bytes_before": made.bytes_before,
        "bytes_after": planned_bytes(made),
        "needs_calibration_data": made.needs_data or measures,
    }


def summary(found: dict[str, Any]) -> str:
    before, after = found["bytes_before"], found["bytes_after"]
    data = "needs calibration data" if found["needs_calibration_data"] else "needs no calibration data"
    return "; ".join(
        [
            f"{plural(found['blocks'], 'block')}, {plural(found['layers_quantized'], 'layer')} quantized "
            f"({count(found['parameters_quantized'])} parameters), {found['layers_kept']} kept in float",
            *([f"{plural(found['caches_quantized'], 'KV cache')} quantized"] if found["caches_quantized"] else []),
            f"{size(before)} → about {size(after)}",
            data,
        ]
    )
