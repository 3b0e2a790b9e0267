"""What was found in a network or a folder: layers, where their weights lie, and what feeds them."""

from dataclasses import dataclass, field
from typing import Any

from gs_core import LayerInfo, Site

Key = tuple[str, int | None]
"""A parameter, and which expert's part of it."""


@dataclass(frozen=True)
class Place:
    """Where a layer's weight lies: a parameter, one expert's part of it, and whether that is ``(in, out)``."""

    parameter: str
    expert: int | None
    transposed: bool

    def of(self, parameter: Any) -> Any:
        """The ``(out, in)`` view of a parameter."""
        part = parameter if self.expert is None else parameter[self.expert]
        return part.T if self.transposed else part


@dataclass
class Layers:
    """infos: every layer, in the order of execution. places: layer → where its weight is. sites: block → site name →
    ``Site``. site_of: which site a product belongs to. fed: the places of all weights that a site's tensor multiplies,
    those of modules that are kept, too. cache_sites: the path of a cache → its key's and value's. kept: name →
    reason."""

    infos: list[LayerInfo] = field(default_factory=list)
    places: dict[str, Place] = field(default_factory=dict)
    sites: list[dict[str, Site]] = field(default_factory=list)
    site_of: dict[Key, str] = field(default_factory=dict)
    fed: dict[str, list[Place]] = field(default_factory=dict)
    cache_sites: dict[str, tuple[Site, Site]] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
