"""Hugging Face transformers: checkpoint folders and live modules, any decoder architecture, no list of models."""

import os
from pathlib import Path
from typing import Any

from gs_core import Adapter, Model
from gs_core.storage import Checkpoint

LARGE_PAGES = "THP_MEM_ALLOC_ENABLE"
"""torch reads it before its first allocation: large tensors lie in large pages from then on. Where each product is made
in fresh memory, faults of small ones take a tenth of the time."""


class HuggingFace(Adapter):
    """Opens ``config.json`` + safetensors folders and live ``torch.nn.Module`` objects."""

    handles = ("torch.nn.modules.module.Module",)

    def refuses(self, folder: Path) -> str | None:
        if not (folder / "config.json").is_file():
            return "the folder has no config.json"
        if any(folder.glob("*.ckpt")) and not any(folder.glob("*.safetensors")):
            return "the weights are MindSpore's .ckpt; install golden-stick-mindformers"
        return None

    def open(
        self, source: Any, device: str, checkpoint: Checkpoint | None = None, trust_remote_code: bool = False
    ) -> Model:
        os.environ.setdefault(LARGE_PAGES, "1")
        from gs_hf.opening import open_folder, open_module

        if isinstance(source, Path):
            return open_folder(source, device, checkpoint, trust_remote_code)
        return open_module(source, device, trust_remote_code)
