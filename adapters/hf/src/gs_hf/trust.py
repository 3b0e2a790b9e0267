"""Python code in a checkpoint folder runs only with ``trust_remote_code``. transformers never asks the user."""

import json
from pathlib import Path
from typing import Any

SAFE_ATTENTION = ("eager", "sdpa")
"""Attention implementations that are part of transformers. Other names can load a kernel from the hub."""


def refusal(folder: Path, file: str) -> str | None:
    """An error message if ``auto_map`` of a file names Python code in the folder, else ``None``.

    file: ``config.json`` or ``tokenizer_config.json``.
    """
    try:
        named = json.loads((folder / file).read_text(encoding="utf-8")).get("auto_map")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    if not named:
        return None
    return (
        f"{folder / file}: auto_map names Python code in the folder. This code does not run. If you have read it and "
        "trust it, pass --trust-remote-code (in Python: trust_remote_code=True)"
    )


def without_hub_kernels(config: Any) -> Any:
    """The configuration without an attention implementation that is not in ``SAFE_ATTENTION``.

    transformers would download and run the kernel that ``attn_implementation`` names.
    """
    asked = config._attn_implementation
    config._attn_implementation = asked if asked in SAFE_ATTENTION else None  # None: sdpa, or eager without sdpa
    return config


def model_class(config: Any, folder: Path) -> Any:
    """The causal language model that ``auto_map`` names; ``None`` if it names none. Runs code from the folder."""
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    named = (getattr(config, "auto_map", None) or {}).get("AutoModelForCausalLM")
    return None if named is None else get_class_from_dynamic_module(named, folder, local_files_only=True)
