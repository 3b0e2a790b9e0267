"""Where a map of channels can be folded, found by trying: what adapters share.

A producer's output channels are multiplied by powers of two, which floating point carries exactly. Where a site's
channels come out multiplied by the same powers, the producer reaches it; where the block's output comes back to
what it was once every such site is divided again, nothing else was reached. Channels that may be mixed, those of a
head, are found by mixing them. No name of a layer plays a part.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from gs_core.arrays import Array, RawTensor, device, namespace, to_numpy
from gs_core.comparing import equivalent
from gs_core.errors import CalibrationError
from gs_core.interfaces import Batch, Fold
from gs_core.linear_map import LinearMap

SAMPLES, TOKENS = 2, 16
COLUMN_TOLERANCE = 1e-4
"""Largest difference of a channel relative to its own magnitude. Scales are powers of two, so no rounding occurs."""
HEAD = 1024
"""Channels of the largest head that is looked for."""
DIGIT = 4
"""Bits of a channel's number that one run tells: powers of two up to 2**15 pass through floating point exactly."""


@dataclass
class Seen:
    """One probing run: what arrived at each site ``(tokens, features)``, before anything was undone there, and what
    the block returned."""

    at: dict[str, Array]
    hidden: Array


Change = tuple[str, LinearMap, int]
"""A norm or layer, the map that its output channels go through, and how many those are."""


class Prober(ABC):
    """Runs a block on a few tokens with some tensors changed. An adapter says how."""

    def __init__(self, batch: Batch):
        self._random = np.random.default_rng(0)

        def run(few: Batch) -> Seen:
            self.batch = few
            return self.run()

        self.base = on_few(run, batch, SAMPLES, TOKENS)[0]

    @abstractmethod
    def run(self, *changes: Change, restore: Mapping[str, LinearMap] | None = None) -> Seen:
        """``restore``: maps that are undone at these sites. Raises ``CalibrationError`` when the block cannot run."""

    def bits(self, channels: int) -> Array:
        """Random ones and twos."""
        scale = 1 + self._random.integers(0, 2, channels).astype(np.float32)
        scale[0], scale[-1] = 1, 2
        return self.asarray(scale)

    def rotation(self, size: int) -> LinearMap:
        """A random reflection that mixes every ``size`` neighbours: of all rotations the cheapest to make."""
        normal = self._random.standard_normal(size)
        matrix = np.eye(size) - np.outer(normal, normal) * (2 / (normal @ normal))
        return LinearMap((self.asarray(matrix),), orthogonal=True)

    def asarray(self, x: np.ndarray) -> Array:
        """``x`` in the library, dtype and device of the block's outputs."""
        hidden = self.base.hidden
        return namespace(hidden).asarray(x, dtype=hidden.dtype, device=device(hidden))

    def unchanged(self, seen: Seen) -> bool:
        return equivalent(self.base.hidden, seen.hidden)


Answer = TypeVar("Answer")


def on_few(run: Callable[[Batch], Answer], batch: Batch, samples: int, tokens: int) -> tuple[Answer, Batch]:
    """What ``run`` makes of the first tokens of a batch, or of all where the model does not take sequences so short;
    and which those were."""
    few = cut(batch, samples, tokens)
    try:
        return run(few), few
    except CalibrationError:
        return run(batch), batch


def cut(batch: Batch, samples: int, count: int) -> Batch:
    """The first tokens of the first samples, where it can be told which axes of what came before those are."""
    tokens, previous = batch
    few = tokens[:samples, :count]
    if previous is None:
        return few, None
    found = {}
    for name, raw in previous.items():
        axes = tuple(raw.shape[:2])
        if name == "length":
            found[name] = raw
        elif axes == tokens.shape:
            found[name] = _part(raw, samples, count)
        elif axes == tokens.shape[::-1]:
            found[name] = _part(raw, count, samples)
        else:
            return batch
    return few, found


def _part(raw: RawTensor, first: int, second: int) -> RawTensor:
    elements = raw.data.reshape(*raw.shape[:2], -1)[:first, :second]
    return RawTensor(raw.dtype, (*elements.shape[:2], *raw.shape[2:]), np.ascontiguousarray(elements).reshape(-1))


# --- norms ---------------------------------------------------------------------------------------------------


def reached_by_norm(prober: Prober, norm: str, channels: int) -> list[str]:
    """Every site that a norm's output is, or none when it goes elsewhere too."""
    scale = prober.bits(channels)
    restore: dict[str, LinearMap] = {}
    while True:
        seen = prober.run((norm, times(scale), channels), restore=restore)
        new = [
            site
            for site, x in seen.at.items()
            if site not in restore
            and same_shape(x, prober.base.at.get(site))
            and x.shape[-1] == channels
            and equivalent(prober.base.at[site] * scale, x)
        ]
        if not new:
            break
        restore |= dict.fromkeys(new, times(scale))
    return list(restore) if restore and prober.unchanged(seen) else []


def covered(prober: Prober, known: Mapping[str, Fold]) -> bool:
    """Whether there is no site but those behind the folds that are known."""
    return set(prober.base.at) <= {site for fold in known.values() for site in fold.sites}


# --- layers (value → o, up → down) ---------------------------------------------------------------------------


def layer_folds(
    prober: Prober, layers: Mapping[str, tuple[int, str]], sites: Collection[str], known: Mapping[str, Fold]
) -> list[Fold]:
    """Where the scale of a layer's output channels disappears. ``layers``: rows and site of each by name. ``known``:
    see ``gs_core.known_folds``. Of a mixture's experts one is tried, and the others are taken to be like it."""
    found: list[Fold] = []
    tried: set[str] = set()
    for name, (rows, own_site) in layers.items():
        if name in known:
            found.append(known[name])
            tried.add(pattern(name))
            continue
        if own_site not in prober.base.at or pattern(name) in tried or covered(prober, known):
            continue
        tried.add(pattern(name))
        for site, index, head in _reached_by_layer(prober, name, rows, own_site):
            for like in (n for n in layers if pattern(n) == pattern(name)):
                target = _counterpart(name, like, site)
                if target in sites:
                    found.append(Fold(like, (target,), layers[like][0], index, head))
    return found


def _reached_by_layer(
    prober: Prober, name: str, channels: int, own_site: str
) -> Sequence[tuple[str, np.ndarray | None, int]]:
    """The one site whose channels are this layer's output channels, the channel behind each, and how many mix."""
    scale = prober.bits(channels)
    seen = prober.run((name, times(scale), channels))
    for site, x in seen.at.items():
        base = prober.base.at.get(site)
        if site == own_site or base is None or not same_shape(x, base) or x.shape[-1] % channels:
            continue
        once, twice = _columns_close(x, base), _columns_close(x, base * 2)
        if once.all() or not (once | twice).all():  # it lies before the layer, or beside it; or behind something else
            continue
        if x.shape[-1] == channels and equivalent(base * scale, x):
            index = None
        else:
            index = _index(prober, name, channels, site, base)
            if index is None:
                continue
        expanded = Fold(name, (site,), channels, index).expand(scale)
        if prober.unchanged(prober.run((name, times(scale), channels), restore={site: times(expanded)})):
            return [(site, index, _head(prober, name, channels, site, index))]
    return []


def _head(prober: Prober, name: str, channels: int, site: str, index: np.ndarray | None) -> int:
    """How many neighbouring channels can be mixed, each group alike: 1 where they only pass one by one."""
    base = prober.base.at[site]

    def passes(size: int) -> bool:
        if index is not None and not _in_groups(index, size):
            return False
        mixed = prober.rotation(size)
        seen = prober.run((name, mixed, channels), restore={site: mixed})
        return equivalent(mixed.apply(base), seen.at[site]) and prober.unchanged(seen)

    sizes = [n for n in range(2, min(channels, HEAD) + 1) if channels % n == 0 and base.shape[-1] % n == 0]
    if not sizes or not passes(sizes[0]):
        return 1
    # Each channel takes on the first one of its group: only within a head does it come out that way.
    added = np.eye(sizes[-1], dtype=np.float32)
    added[0, :] = 1
    x = prober.run((name, LinearMap((prober.asarray(added),)), channels)).at[site][:, : sizes[-1]]
    wanted = base[:, : sizes[-1]] + base[:, :1]
    wanted[:, 0] = base[:, 0]
    together = int(np.argmin([*_columns_close(x, wanted), False]))
    return next(size for size in reversed(sizes) if size == sizes[0] or (size <= together and passes(size)))


def _in_groups(index: np.ndarray, size: int) -> bool:
    """Whether site channels come from producer channels in whole groups of neighbours, in order."""
    first = index.reshape(-1, size)[:, :1]
    return bool((first % size == 0).all() and (index.reshape(-1, size) == first + np.arange(size)).all())


def _index(prober: Prober, name: str, channels: int, site: str, base: Array) -> np.ndarray | None:
    """Read each site channel's producer channel digit by digit: multiply each channel by two to the power of a digit
    of its number."""
    number, maxima = np.arange(channels), _column_maxima(base)
    if dead(base):
        return None
    index = np.zeros(base.shape[-1], np.int64)
    for shift in range(0, max(1, (channels - 1).bit_length()), DIGIT):
        scale = prober.asarray((2.0 ** ((number >> shift) % 2**DIGIT)).astype(np.float32))
        seen = prober.run((name, times(scale), channels)).at.get(site)
        if seen is None or not same_shape(seen, base):
            return None
        digit = np.rint(np.log2(np.maximum(_column_maxima(seen) / maxima, 1)))
        if not _columns_close(seen, base * prober.asarray((2.0**digit).astype(np.float32))).all():
            return None
        index |= digit.astype(np.int64) << shift
    return index if int(index.max()) < channels else None


def pattern(name: str) -> str:
    """A layer's name with the numbers of experts left open (the block's own number stays)."""
    return re.sub(r"(?<=experts)\.\d+(?=\.)", ".*", name)


def _counterpart(name: str, like: str, site: str) -> str:
    """The site that is to ``like`` what ``site`` is to ``name``."""
    mine, its = re.findall(r"(?<=experts)\.\d+(?=\.)", name), re.findall(r"(?<=experts)\.\d+(?=\.)", like)
    for a, b in zip(mine, its, strict=True):
        site = site.replace(f"experts{a}.", f"experts{b}.", 1)
    return site


def times(scale: Array) -> LinearMap:
    """The map that multiplies by powers of two, ``(channels,)``."""
    return LinearMap(scale=1 / scale)


# --- comparing -----------------------------------------------------------------------------------------------


def same_shape(x: Array | None, y: Array | None) -> bool:
    return x is not None and y is not None and tuple(x.shape) == tuple(y.shape)


def _columns_close(x: Array, y: Array) -> np.ndarray:
    return _column_maxima(x - y) <= COLUMN_TOLERANCE * _column_maxima(y)


def dead(base: Array) -> bool:
    """Whether a channel is zero on these tokens: nothing can be told of it."""
    return bool((_column_maxima(base) == 0).any())


def _column_maxima(x: Array) -> np.ndarray:
    xp = namespace(x)
    return to_numpy(xp.max(xp.abs(x), axis=0))
