"""Whether a folder can be written to, found before the model is opened."""

from pathlib import Path

from gs_core.errors import OutputError, PlanError
from gs_core.journal import FOLDER, REPORT


def check_output(output: Path, model: Path | None, restart: bool) -> None:
    """Raise ``PlanError`` for the model's own folder and the working directory, and ``OutputError`` for a folder that
    is not ours to write: one that holds files, but neither an unfinished run nor, with ``restart``, a finished one."""
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
        finished = f" It holds a finished run: {REPORT} is there." if (output / REPORT).is_file() else ""
        raise OutputError(
            f"{output} is not empty ({first} …) and no unfinished run of ours.{finished} "
            "Choose another folder, or pass `restart=` to replace a run of ours"
        )
