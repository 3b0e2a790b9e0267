"""Transforms that leave the float function as it was: folded into what comes before a site, or computed at it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gs_core.arrays import Array, device, namespace
from gs_core.interfaces.layers import Site
from gs_core.linear_map import LinearMap


@dataclass(frozen=True)
class Fold:
    """A place where a per-channel scale disappears: dividing a producer's output channels by ``s`` scales the
    listed sites, all of them, by ``1/s[index]``.

    producer: the norm or layer whose parameters absorb the division.
    sites: every site the producer reaches.
    channels: how many scales are free.
    index: int ``(features,)``, the producer channel behind each site channel (``None``: one to one). With
        grouped-query attention several site channels share one.
    head: how many neighbouring channels may be mixed with one another, each such group alike, and not only scaled:
        the channels of a head's values. 1 where nothing may be mixed.
    shifts: whether a constant can be taken from each channel, too: the producer has a bias that does it, and every
        layer behind has one that makes up for it.
    """

    producer: str
    sites: tuple[str, ...]
    channels: int
    index: np.ndarray | None = None
    head: int = 1
    shifts: bool = False

    def expand(self, scale: Array) -> Array:
        """``(channels,)`` to ``(features,)``."""
        if self.index is None:
            return scale
        xp = namespace(scale)
        return xp.take(scale, xp.asarray(self.index, device=device(scale)), axis=0)

    def reduce_max(self, arrays: Sequence[Array]) -> Array:
        """The largest of several ``(features,)`` arrays for each free channel, ``(channels,)``."""
        xp = namespace(arrays[0])
        largest = arrays[0]
        for array in arrays[1:]:
            largest = xp.maximum(largest, array)
        if self.index is None:
            return largest
        order = xp.asarray(np.argsort(self.index, kind="stable"), device=device(largest))
        return xp.max(xp.reshape(xp.take(largest, order, axis=0), (self.channels, -1)), axis=1)


@dataclass(frozen=True)
class _Folded:
    fold: Fold

    @property
    def sites(self) -> tuple[str, ...]:
        return self.fold.sites

    @property
    def where(self) -> str:
        return f"{self.fold.producer} → {', '.join(self.fold.sites[:3])}"


@dataclass(frozen=True)
class ChannelScale(_Folded):
    """A transform: activations of ``fold.sites`` become ``(x - shift) / scale``, ``(channels,)`` each. The weights of
    their layers are multiplied by ``scale``, and what these make of ``shift`` is added to their biases.

    Raises ``ValueError`` for a shift where the fold has none.
    """

    scale: Array
    shift: Array | None = None

    def __post_init__(self) -> None:
        if self.shift is not None and not self.fold.shifts:
            raise ValueError(f"{self.where}: not all of them have biases that could absorb a shift")


@dataclass(frozen=True)
class FoldTransform(_Folded):
    """A transform: the producer's output channels go through ``map``, whose ``block`` divides ``fold.head``, and so
    the activations of ``fold.sites`` do; the weights of their layers go through its inverse transpose."""

    map: LinearMap


@dataclass(frozen=True)
class SiteTransform:
    """A transform that is computed when the model runs: activations of ``site`` go through ``map``, the weights of
    its layers through its inverse transpose. The checkpoint format must hold maps of its ``kind``.

    A cached key feeds no weights but is multiplied by queries, and those go through the inverse transpose; or, which
    is the same product, what is read back of the cache goes back through the map (``through``).
    """

    site: str
    map: LinearMap

    def objection(self, site: Site) -> str | None:
        """Why the site that it names cannot take it, or ``None``."""
        if site.kind not in ("input", "key"):
            return f"inputs of layers and keys after their rotation can be mapped, not {site.name}"
        if site.heads and (site.features // site.heads) % self.map.block:
            return f"its factors mix {self.map.block} channels, a head has {site.features // site.heads}"
        return self.map.objection(site.features)

    @property
    def sites(self) -> tuple[str, ...]:
        return (self.site,)

    @property
    def where(self) -> str:
        return self.site


Transform = ChannelScale | FoldTransform | SiteTransform
OnSite = Callable[[str, Array], "Array | None"]
"""Called with a site's name and its activation; what it returns, unless None, takes the activation's place."""


def through(online: Mapping[str, LinearMap], sites: Mapping[str, Site], on_site: OnSite | None = None) -> OnSite | None:
    """An ``on_site`` that sends activations through their site's map before ``on_site`` sees them. What attention
    reads back of a cache has gone back through the map: a block's queries stay as they are."""
    if not online:
        return on_site

    def replace(name: str, x: Array) -> Array | None:
        if name not in online:
            return None if on_site is None else on_site(name, x)
        mapped = online[name].apply(x)
        seen = None if on_site is None else on_site(name, mapped)
        taken = mapped if seen is None else seen
        return taken if sites[name].kind == "input" else online[name].undo(taken)

    return replace
