"""Installed distributions that are not: what an installer leaves on ``sys.path``, written for a test."""

from collections.abc import Mapping
from pathlib import Path

from gs_core.discovery import GROUPS


def write_distribution(
    folder: Path, name: str, version: str = "1.0", *, modules: Mapping[str, str] | None = None, **plugins: str
) -> Path:
    """Make ``folder`` hold a distribution once it is on ``sys.path``; returns the folder.

    modules: source code by module name. plugins: for each kind (``algorithm``, ``format``, ``kernel``,
    ``adapter``) lines of ``name = module:object``, as an ``entry_points.txt`` has them.

    >>> write_distribution(tmp, "acme", modules={"acme": "class Halve: ..."}, algorithm="halve = acme:Halve")
    ... # doctest: +SKIP
    """
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    sections = [f"[{GROUPS[kind]}]\n{lines}\n" for kind, lines in plugins.items()]
    (info / "entry_points.txt").write_text("\n".join(sections))
    for module, source in (modules or {}).items():
        (folder / f"{module}.py").write_text(source)
    return folder
