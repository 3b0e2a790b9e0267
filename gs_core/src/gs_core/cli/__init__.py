"""The command ``gsq``. What a command needs is imported when it runs: ``gsq --help`` waits for no library."""

import os
import signal
import sys
from typing import Annotated

import typer

from gs_core.cli.evaluating import evaluate
from gs_core.cli.listing import plugins, recipes, schema
from gs_core.cli.planning import plan
from gs_core.cli.quantizing import quantize

app = typer.Typer(
    name="gsq",
    help="Turn a large language model into a smaller one that a serving engine loads.",
    epilog="Begin with: gsq recipes",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,  # plain help: it starts in half the time and reads the same in a pipe
    pretty_exceptions_enable=False,
)
app.command()(quantize)
app.command()(plan)
app.command("eval")(evaluate)
app.command()(plugins)
app.command()(recipes)
app.command()(schema)


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"gsq {version('golden-stick-core')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """The entry point."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # a terminal may lack an arrow
    if hasattr(signal, "SIGPIPE"):  # a closed pipe (`gsq … | head`) ends the process without an error
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    # OpenMP's threads spin while they wait for each other. Where another process has the cores they wait long: a run
    # of seconds takes minutes. Sleeping instead costs some ten microseconds for each parallel loop.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    app()
