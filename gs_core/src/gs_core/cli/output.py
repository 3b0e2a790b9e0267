"""Tables and JSON on stdout: coloured and folded in a terminal, plain and as wide as they are in a pipe."""

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

WIDE = 100_000


def print_table(
    headers: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    right: Sequence[str] = (),
    droppable: Sequence[str] = (),
    indent: int = 0,
) -> list[str]:
    """Print rows below headers. The first column is never folded: its names are there to be copied.

    right: columns that are flush right. droppable: columns to leave out, in this order, until the table fits the
    terminal. Returns those that were left out.
    """
    from rich.console import Console
    from rich.padding import Padding

    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = WIDE
    unlimited = console.options.update_width(WIDE)
    rows, dropped = list(rows), list[str]()
    while True:
        kept = [number for number, header in enumerate(headers) if header not in dropped]
        table = _table([headers[i] for i in kept], [[row[i] for i in kept] for row in rows], right)
        width = console.measure(table, options=unlimited).maximum + indent
        if width <= console.width or len(dropped) == len(droppable):
            break
        dropped.append(droppable[len(dropped)])
    with console.capture() as captured:
        console.print(Padding(table, (0, 0, 0, indent), expand=False))
    for line in captured.get().splitlines():
        typer.echo(line.rstrip())
    return dropped


def _table(headers: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[str]) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for number, header in enumerate(headers):
        table.add_column(header, justify="right" if header in right else "left", no_wrap=number == 0, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def print_json(value: Any) -> None:
    """Print JSON. Raises ``ValueError`` for NaN and infinity, which JSON does not have."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))
