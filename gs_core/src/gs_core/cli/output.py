"""Tables and lines on stdout: coloured and folded in a terminal, plain and as wide as they are in a pipe."""

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

WIDE = 100_000


def console() -> "Console":
    """Writes what it is given to stdout as it is: no markup, no highlighting."""
    from rich.console import Console

    made = Console(markup=False, highlight=False, emoji=False)
    if not made.is_terminal:
        made.width = WIDE
    return made


def print_table(
    headers: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[str] = (), indent: int = 0
) -> None:
    """Print rows below headers; the columns named in ``right`` are flush right."""
    from rich import box
    from rich.padding import Padding
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for header in headers:
        table.add_column(header, justify="right" if header in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    out = console()
    with out.capture() as captured:
        out.print(Padding(table, (0, 0, 0, indent), expand=False))
    for line in captured.get().splitlines():
        typer.echo(line.rstrip())


def print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))
