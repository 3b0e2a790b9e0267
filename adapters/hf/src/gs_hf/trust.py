"""Python code in a checkpoint folder: it runs only if the caller trusts it, and transformers never asks the user."""

import json
from pathlib import Path
from typing import Any

SAFE_ATTENTION = ("eager", "sdpa")
"""Attention implementations that are part of transformers. Other names can load a kernel from a hub repository."""


def refusal(folder: Path, file: str) -> str | None:
    """Why a file of the folder cannot be used without running code from the folder; ``None`` if it needs no code.

    file: ``config.json`` or ``tokenizer_config.json``. Its ``auto_map`` names the classes.
    """
    try:
        named = json.loads((folder / file).read_text(encoding="utf-8")).get("auto_map")
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    if not named:
        return None
    return (
        f"{folder / file}: auto_map names Python code in the folder, which is not run. If you have read the code and "
        "trust it, pass --trust-remote-code (in Python: trust_remote_code=True)"
    )


def without_hub_kernels(config: Any) -> Any:
    """The configuration with attention by transformers' own code: a name of another implementation is removed.

    transformers would download the kernel that ``attn_implementation`` names, and run it.
    """
    asked = config._attn_implementation
    config._attn_implementation = asked if asked in SAFE_ATTENTION else None  # None: sdpa, or eager without sdpa
    return config


def model_class(config: Any, folder: Path) -> Any:
    """The causal language model that ``auto_map`` names; ``None`` if it names none. Runs code from the folder."""
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    named = (getattr(config, "auto_map", None) or {}).get("AutoModelForCausalLM")
    return None if named is None else get_class_from_dynamic_module(named, folder, local_files_only=True)
