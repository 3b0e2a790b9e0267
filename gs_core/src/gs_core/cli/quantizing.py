"""``gsq quantize``: the command that everything else is there for."""

from pathlib import Path
from typing import Annotated

import typer

from gs_core.cli.arguments import (
    Adapter,
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
from gs_core.cli.errors import interrupt, one_line_errors


@one_line_errors
def quantize(
    model: Model,
    recipe: RecipeName,
    output: Annotated[
        str,
        typer.Option(
            "--output", "-o", metavar="OUT", help="Output folder: new, empty, or an unfinished run to resume."
        ),
    ],
    format: Format = None,
    calibration: Calibration = None,
    samples: Samples = None,
    seq_len: SeqLen = None,
    device: Device = "cpu",
    adapter: Adapter = None,
    trust_remote_code: TrustRemoteCode = False,
    set: Settings = None,
    group_size: GroupSize = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Remove the files of an earlier run in OUT first.")
    ] = False,
) -> None:
    """Quantize MODEL as RECIPE says, into the folder OUT."""
    chosen = read_recipe(recipe, set, group_size)
    from gs_core import api
    from gs_core.cli.progress import watching
    from gs_core.cli.summary import print_summary

    try:
        with watching(f"opening {model}") as progress:
            report = api.quantize(
                model,
                chosen,
                output,
                calibration=calibration,
                samples=samples,
                seq_len=seq_len,
                format=format,
                device=device,
                adapter=adapter,
                trust_remote_code=trust_remote_code,
                restart=restart,
                progress=progress,
            )
    except KeyboardInterrupt:
        interrupt(_interrupted(Path(output), restart))
    print_summary(report)


def _interrupted(output: Path, restart: bool) -> str:
    from gs_core.journal import FOLDER

    if not (output / FOLDER).is_dir():
        return "interrupted before the first block; nothing was written"
    again = "the same command without --restart" if restart else "the same command"
    return f"interrupted; finished blocks are kept in {output}, and {again} resumes the run"
