"""Checks the output folder before the model is opened."""

from pathlib import Path

from gs_core.errors import OutputError, PlanError
from gs_core.journal import FOLDER, REPORT, not_empty


def check_output(output: Path, model: Path | None, restart: bool) -> None:
    """Raise an error if the output folder must not be written to.

    Raises:
        PlanError: it is or contains the model's folder or the working directory.
        OutputError: it is a file, or it has files but no unfinished run (with ``restart``: no finished run either).
    """
    folder, others = output.resolve(), {"the working directory": Path.cwd().resolve()}
    if model is not None:
        others["the model"] = model.resolve()
    for name, other in others.items():
        if folder == other or folder in other.parents:
            relation = "is" if folder == other else "contains"
            raise PlanError([f"{output} {relation} {name}; choose another folder to write to"])
    if output.exists() and not output.is_dir():
        raise OutputError(f"{output} is a file; choose a folder to write to")
    if not output.is_dir() or (output / FOLDER).is_dir() or (restart and (output / REPORT).is_file()):
        return
    first = min((path.name for path in output.iterdir()), default=None)
    if first is not None:
        raise not_empty(output, first)
