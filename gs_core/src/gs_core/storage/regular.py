"""Open files of a checkpoint folder: only regular files. Opening never waits for a FIFO or a device."""

import os
import stat
from io import FileIO
from pathlib import Path

from gs_core.errors import CheckpointError


def open_regular(path: Path) -> FileIO:
    """The file, opened to read bytes, unbuffered.

    Raises ``CheckpointError`` for a FIFO, device, socket or folder, ``OSError`` for a file that cannot be opened.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise CheckpointError(f"{path}: a FIFO, device or folder, not a regular file; replace it by the file itself")
    return FileIO(handle)


def check_link(path: Path, folder: Path) -> None:
    """Raise ``CheckpointError`` if a file of a model folder is a symbolic link to a file outside the folder.

    A link may lead into the folder itself, or into ``../../blobs``, where the Hugging Face cache keeps the files of
    ``snapshots/<revision>``.
    """
    target, home = path.resolve(), folder.resolve()
    allowed = [home]
    if home.parent.name == "snapshots":
        allowed.append(home.parent.parent / "blobs")
    if not any(target.is_relative_to(place) for place in allowed):
        raise CheckpointError(
            f"{path} is a link to {target}, outside the model folder, and would be copied into the output. "
            "Replace the link by the file, or remove it"
        )
