"""What the blocks of a model have taught about the next one: where scales can be folded (see ``gs_core.probing``)."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from gs_core.comparing import equivalent
from gs_core.interfaces import Fold
from gs_core.linear_map import LinearMap
from gs_core.probing import Change, Prober, dead, same_shape, times


class Folds:
    """Folds that were found in the blocks of a model. Most blocks are made alike: whatever was found in others is
    tried at once, in a single run."""

    def __init__(self) -> None:
        self._found: dict[str, Fold] = {}

    def remember(self, block: str, folds: Iterable[Fold]) -> None:
        for fold in folds:
            within = _renamed(fold, block, "")
            self._found[within.producer] = within

    def holding(
        self, prober: Prober, block: str, channels: Mapping[str, int], sites: Collection[str]
    ) -> dict[str, Fold]:
        """Those that are in this block too, all of them or none, by producer. ``channels``: of its norms and layers;
        ``sites``: its own. What they are must not depend on which blocks were seen before: a run may have begun here.
        """
        folds = [_renamed(fold, "", block) for fold in self._found.values()]
        here = {*sites, *prober.base.at}
        folds = [f for f in folds if channels.get(f.producer) == f.channels and here.issuperset(f.sites)]
        folds = [replace(fold, sites=in_order(fold.sites, sites)) for fold in folds]
        return {fold.producer: fold for fold in folds} if folds and _hold(prober, folds) else {}


def _renamed(fold: Fold, before: str, after: str) -> Fold:
    def rename(name: str) -> str:
        return after + name.removeprefix(before)

    return replace(fold, producer=rename(fold.producer), sites=tuple(map(rename, fold.sites)))


def in_order(some: Collection[str], sites: Collection[str]) -> tuple[str, ...]:
    """The same in the order of the block's ``sites``, then whatever else is fed there (what routes to experts)."""
    order = {site: number for number, site in enumerate(sites)}
    return tuple(sorted(some, key=lambda site: (order.get(site, len(order)), site)))


def _hold(prober: Prober, folds: Sequence[Fold]) -> bool:
    """Whether every site comes out changed as its producers are, and the block's output is what it was."""
    changes: list[Change] = []
    restore: dict[str, LinearMap] = {}
    for fold in folds:
        if fold.index is not None and any(dead(prober.base.at[site]) for site in fold.sites if site in prober.base.at):
            return False
        mixing = prober.rotation(fold.head).factors if fold.head > 1 else ()
        scale = times(prober.bits(fold.channels)).scale
        changes.append((fold.producer, LinearMap(mixing, scale), fold.channels))
        restore |= dict.fromkeys(fold.sites, LinearMap(mixing, fold.expand(scale)))
    seen = prober.run(*changes, restore=restore)
    for site, map in restore.items():
        base = prober.base.at.get(site)
        if base is None:  # an expert that no token of these reaches
            continue
        if not same_shape(seen.at.get(site), base) or map.objection(base.shape[-1]):
            return False
        if not equivalent(map.apply(base), seen.at[site]):
            return False
    return prober.unchanged(seen)
