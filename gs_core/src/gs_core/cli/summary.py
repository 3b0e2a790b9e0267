"""What ``gsq quantize`` says at its end, from ``Report.data`` alone."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from shlex import quote
from typing import TYPE_CHECKING, Any

import typer

from gs_core.cli.output import print_table
from gs_core.cli.text import alike, collapse, duration, opens_in, plural, size
from gs_core.journal import REPORT

if TYPE_CHECKING:
    from gs_core.report import Report

NOTES = 8


def print_summary(report: "Report") -> None:
    data, run = report.data, report.data["run"]
    before, after = data["bytes_before"], data["bytes_after"]
    typer.secho(f"{data['model']} → {report.out}", bold=True)
    _facts(
        recipe=[_recipe(data["recipe"])],
        source=_source(data.get("source_schemes")),
        size=[f"{size(before)} → {size(after)}, {before / after:.2f} times smaller"],
        layers=_as(data["schemes"], "layer"),
        caches=_as(Counter({row["cache"]: row["scheme"] for row in data.get("caches", ())}.values()), "KV cache"),
        opens=opens_in(data["engines"]),
        float=_kept(data["kept_in_float"]),
        time=[_time(run["seconds_of_this_process"], run["seconds"])],
        memory=[f"{size(run['peak_memory_bytes'])} at its peak"],
        notes=_notes(data["notes"]),
    )
    typer.echo()
    if report.layers:
        _worst(report.worst(5))
        typer.echo()
    typer.echo(f"Everything is in {report.out / REPORT}. To measure the loss:")
    typer.echo(f"  gsq eval {quote(str(report.out))} --against {quote(data['model'])} --text FILE")


def _facts(**facts: Iterable[str]) -> None:
    for label, lines in facts.items():
        for number, line in enumerate(lines):
            typer.echo(f"  {label if number == 0 else '':8}{line}")


def _source(schemes: str | None) -> list[str]:
    return [f"already quantized as {schemes}"] if schemes else []


def _as(schemes: Mapping[str, int], noun: str) -> list[str]:
    found = ", ".join(f"{plural(number, noun)} as {scheme}" for scheme, number in schemes.items())
    return [found] if found else []


def _recipe(recipe: dict[str, Any]) -> str:
    names = ", ".join(algorithm["name"] for algorithm in recipe["algorithms"])
    return recipe.get("name") or names


def _time(this: float, all_blocks: float) -> str:
    if all_blocks <= this:
        return duration(this)
    return f"{duration(this)} this time, {duration(all_blocks)} for all blocks"


def _kept(rows: Sequence[dict[str, Any]]) -> list[str]:
    """One line for each reason."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        reasons.setdefault(row["why"], []).append(row["layer"])
    return [f"{_some(names)}: {why}" for why, names in reasons.items()]


def _some(names: Sequence[str], shown: int = 2) -> str:
    collapsed = collapse(names)
    if len(collapsed) <= shown:
        return ", ".join(collapsed)
    return f"{plural(len(names), 'layer')}, {', '.join(collapsed[:shown])} …"


def _notes(notes: Sequence[str]) -> list[str]:
    """Notes that differ in numbers alone as one, and not too many of them."""
    groups = alike(notes, re.compile(r"\d+"))
    lines = [_together(same) for same in groups]
    more = sum(map(len, groups[NOTES:]))
    return lines[:NOTES] + ([f"and {more} more, in {REPORT}"] if more else [])


def _together(notes: Sequence[str]) -> str:
    """``layers.{0..3}.up_proj: no token reached it``, or the first of several whose messages differ."""
    subjects, messages = zip(*(note.split(": ", 1) if ": " in note else (note, "") for note in notes), strict=True)
    if len({*messages}) > 1:
        return f"{notes[0]} (and {plural(len(notes) - 1, 'note')} like it)"
    return f"{_some(subjects)}: {messages[0]}" if messages[0] else _some(subjects)


def _worst(rows: Sequence[dict[str, Any]]) -> None:
    """Squared errors relative to the float layer's output, or to its weight where no data was seen."""
    kinds = {row["error_of"] for row in rows}
    print_table(
        ["worst layers", "scheme", "algorithms", f"{kinds.pop()} error" if len(kinds) == 1 else "error"],
        [
            [
                row["layer"],
                row["scheme"],
                ", ".join(row["algorithms"]),
                f"{100 * row['error']:#.3g} %" + (f" of {row['error_of']}" if kinds else ""),
            ]
            for row in rows
        ],
        indent=2,
    )
