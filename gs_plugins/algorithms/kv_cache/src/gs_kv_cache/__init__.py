"""Quantized KV caches: the scales of cached keys and values.

What a cache costs, and why its keys have a few large channels and its values do not: Liu et al., "KIVI: A
Tuning-Free Asymmetric 2bit Quantization for KV Cache", https://arxiv.org/abs/2402.02750. Quantizing keys before
their rotation, which mixes those channels in pairs: Hooper et al., "KVQuant", https://arxiv.org/abs/2401.18079.
"""

from gs_core import Accumulator, Algorithm, Array, Site, StaticInput, Strict, hookimpl, namespace, numerics
from gs_core.interfaces import SiteKind
from gs_core.observers import Sample
from gs_schemas import QuantizationArgs, QuantizationScheme

ROWS = 4096
"""On which scales of the smallest squared error are chosen."""


class Options(Strict):
    """``before_rope``: quantize keys as they leave their layer, and rotate what is read back; most engines cache
    rotated keys, so only for one that does not."""

    before_rope: bool = False


class CacheRange(Accumulator):
    """The range of every channel of what is cached, and some rows of it; then its scales, as a ``StaticInput``."""

    def __init__(self, site: Site, args: QuantizationArgs):
        self._site, self._args = site, args
        self._low: Array = None
        self._high: Array = None
        self._sample = Sample(ROWS) if args.observer == "mse" else None

    def update(self, x: Array) -> None:
        xp = namespace(x)
        low, high = xp.min(x, axis=0), xp.max(x, axis=0)
        self._low = low if self._low is None else xp.minimum(self._low, low)
        self._high = high if self._high is None else xp.maximum(self._high, high)
        if self._sample is not None:
            self._sample.update(x)

    def result(self) -> StaticInput:
        sample = None if self._sample is None else self._sample.result()
        dtype = numerics.scale_dtype(self._args, self._site.dtype)
        return StaticInput(*numerics.cache_params(self._low, self._high, sample, self._site.heads, self._args, dtype))


class KVCache(Algorithm):
    """Treats keys and values, and no layer."""

    Options = Options

    @property
    def kinds(self) -> tuple[SiteKind, ...]:
        return ("unrotated_key" if self.options.before_rope else "key", "value")

    @hookimpl
    def observe(self, site: Site, scheme: QuantizationScheme) -> Accumulator | None:
        args = scheme.kv_cache
        return CacheRange(site, args) if args is not None and not args.dynamic else None
