"""What a user can mend is a line on stderr and an exit code; a traceback means a bug."""

import functools
import re
from collections.abc import Callable, Iterable
from typing import NoReturn, ParamSpec, TypeVar

import typer

from gs_core.cli.text import IN_NAMES, alike

FAILED, CANNOT_BE_PLANNED, INTERRUPTED = 1, 2, 130

P = ParamSpec("P")
R = TypeVar("R")


def one_line_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Make a command print its ``GoldenStickError`` or ``SchemaError``, one line for each problem, and exit."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except KeyboardInterrupt:
            interrupt("interrupted")
        except Exception as error:
            found = _problems(error)
            if found is None:
                raise
            stop(*found)

    return run


def _problems(error: Exception) -> tuple[list[str], int] | None:
    from gs_core.errors import GoldenStickError, PlanError
    from gs_schemas import SchemaError

    match error:
        case PlanError():
            return error.problems, CANNOT_BE_PLANNED
        case SchemaError():
            return [f"{error.what}: {problem}" for problem in error.problems], CANNOT_BE_PLANNED
        case GoldenStickError():
            return [str(error)], FAILED
    return None


def _flags(message: str) -> str:
    """The message with command-line flags (``--seq-len``) instead of Python arguments (```seq_len=```)."""
    return re.sub(r"`(\w+)=`", lambda found: f"--{found[1].replace('_', '-')}", message)


def interrupt(message: str) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(INTERRUPTED)


def stop(problems: Iterable[str], code: int) -> NoReturn:
    """Print the problems, one line each and the same one in many blocks once, and exit."""
    for problem, *others in alike(problems, IN_NAMES):
        typer.secho("error: ", fg="red", bold=True, nl=False, err=True)
        typer.echo(_flags(" ".join(line.strip() for line in problem.splitlines())), nl=False, err=True)
        typer.echo(f" (and {len(others)} more like it)" if others else "", err=True)
    raise typer.Exit(code)
