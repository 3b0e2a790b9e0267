"""A table of quantized layers, for people."""

from collections.abc import Mapping, Sequence
from typing import Any

COLUMNS = ("layer", "scheme", "algorithms", "relative error")


def table(layers: Mapping[str, str], known: Mapping[str, Mapping[str, Any]]) -> str:
    """Lines of aligned columns. layers: name → scheme. known: rows of a run's report by layer; none for a network
    that was only prepared to load a checkpoint."""
    if not layers:
        return "no layer of this network is quantized"
    rows = [COLUMNS, *(_row(name, scheme, known.get(name)) for name, scheme in layers.items())]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _row(name: str, scheme: str, found: Mapping[str, Any] | None) -> Sequence[str]:
    if found is None:
        return name, scheme, "", ""
    return name, scheme, "+".join(found["algorithms"]), f"{found['error']:.2e} of {found['error_of']}"
