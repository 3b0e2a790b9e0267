"""The local Hugging Face cache: snapshots of models and datasets by their hub id. Nothing is ever downloaded.

Layout: https://huggingface.co/docs/huggingface_hub/guides/manage-cache
"""

import os
import re
from pathlib import Path
from typing import Literal

Kind = Literal["models", "datasets"]
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def is_hub_id(name: str) -> bool:
    """True if ``name`` has the form of a hub id: ``name`` or ``user/name``."""
    return HUB_ID.fullmatch(name) is not None


def hub_cache() -> Path:
    """The folder where ``hf download`` keeps snapshots."""
    chosen = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    return Path(chosen).expanduser() if chosen else _home() / "hub"


def datasets_cache() -> Path:
    """The folder where the ``datasets`` library keeps its .arrow files."""
    chosen = os.environ.get("HF_DATASETS_CACHE")
    return Path(chosen).expanduser() if chosen else _home() / "datasets"


def snapshot(kind: Kind, name: str) -> Path | None:
    """The cached snapshot of the ``main`` branch; without a ``main`` branch the only snapshot; otherwise ``None``."""
    if not is_hub_id(name):
        return None
    repository = hub_cache() / f"{kind}--{name.replace('/', '--')}"
    snapshots = repository / "snapshots"
    try:
        commit = (repository / "refs" / "main").read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        found = [path for path in snapshots.glob("*") if path.is_dir()]
        return found[0] if len(found) == 1 else None
    return snapshots / commit if re.fullmatch(r"\w+", commit) and (snapshots / commit).is_dir() else None


def how_to_download(kind: Kind, name: str) -> str:
    """The end of an error message for a hub id that is not in the local cache; empty for other names."""
    if not is_hub_id(name):
        return ""
    option = " --repo-type dataset" if kind == "datasets" else ""
    return (
        f". It is not in the local Hugging Face cache {hub_cache()} either. "
        f"If it is a hub id, download it first: hf download {name}{option}"
    )


def _home() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("HF_HOME") or os.path.join(cache, "huggingface")).expanduser()
