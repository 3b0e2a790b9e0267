"""MindSpore: live networks of MindFormers (or any other cells), and checkpoint folders under either's names.

Importing this package imports no framework.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gs_core import Adapter, Model
from gs_core.storage import Checkpoint

__all__ = ["MindFormers"]


class MindFormers(Adapter):
    """Opens live ``mindspore.nn.Cell`` objects, and folders of ``.ckpt`` or safetensors files.

    block_types: class names, dotted or bare, of cells that are decoder blocks. Without any they are found: the
    ``CellList`` that holds the most weights.
    """

    handles = ("mindspore.nn.cell.Cell",)

    def __init__(self, block_types: Sequence[str] = ()):
        self.block_types = tuple(block_types)

    def refuses(self, folder: Path) -> str | None:
        from gs_mindformers.folder import why_not

        return why_not(folder)

    def open(
        self, source: Any, device: str, checkpoint: Checkpoint | None = None, trust_remote_code: bool = False
    ) -> Model:
        """Ignores ``device``: a network computes on the device of MindSpore's context.

        Ignores ``trust_remote_code``: no code from a folder ever runs.
        """
        if isinstance(source, Path):
            from gs_mindformers.folder import open_folder

            return open_folder(source, checkpoint)
        from gs_mindformers.live import open_network

        return open_network(source, self.block_types)
