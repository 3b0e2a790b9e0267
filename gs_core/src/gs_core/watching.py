"""Observing a block: one pass over the calibration data while every observer of every site listens."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gs_core import numerics
from gs_core.arrays import Array, namespace
from gs_core.comparing import check_finite
from gs_core.errors import CalibrationError, PluginError
from gs_core.interfaces import (
    Accumulator,
    Batch,
    Block,
    ChannelScale,
    Layer,
    OnSite,
    Site,
    SiteTransform,
    StaticInput,
    Transform,
)
from gs_core.journal import Activations
from gs_core.linear_map import LinearMap
from gs_core.observers import Limits, Sample, limits_of, static_input
from gs_core.planning import CacheRow, Row, static_inputs
from gs_core.stages import Stages, implements
from gs_schemas import QuantizationArgs, QuantizationScheme


class Heard(Exception):
    """Thrown out of a block's run when every site has been heard: what it would compute after that is not needed. Only
    where the first batch came to each site exactly once, so that nothing arrives at one a second time."""


@dataclass
class SiteWatch:
    """Everything that listens at one site."""

    site: Site
    scheme: QuantizationScheme
    by_algorithm: dict[str, Accumulator]
    sample: Sample
    limits: Limits | None
    dtype: str
    tokens: int = 0

    def accumulators(self) -> list[Accumulator]:
        return [*self.by_algorithm.values(), self.sample, *([self.limits] if self.limits else [])]

    def static_input(self) -> StaticInput | None:
        """Parameters of the site's static quantization; None for dynamic or float, or when nothing arrived."""
        args = self.scheme.inputs
        if self.limits is None or args is None or not self.tokens:
            return None
        dtype = numerics.scale_dtype(args, self.dtype)
        return static_input(self.limits, self.sample.result(), args, dtype)


@dataclass
class Watch:
    """The listeners of one block, by site."""

    stages: Stages
    block: Block
    rows: Mapping[str, Row]
    batches: Sequence[Batch]
    floats: Sequence[Batch] = ()
    """The same batches, no block before quantized: for accumulators of pairs."""
    caches: Mapping[str, CacheRow] = field(default_factory=dict)
    """By the names of the sites that are quantized."""
    exact: bool = True
    """Whether the block has to multiply in float32."""
    sites: dict[str, SiteWatch] = field(default_factory=dict)

    def run(self, after: Activations | None = None) -> None:
        """Listen everywhere, for one pass; keep what the block returns in ``after``."""
        self.sites = {
            site.name: watch for site in self.block.sites.values() if (watch := self._listeners(site)) is not None
        }
        self._pass(self.sites, after)

    def _listeners(self, site: Site) -> SiteWatch | None:
        if site.name in self.caches:
            return self._cache_listener(site, self.caches[site.name])
        rows = [row for name in site.layers if (row := self.rows[name]).scheme is not None]
        if not rows:
            return None
        chosen: dict[str, QuantizationScheme] = {}
        for row in rows:
            for name in row.algorithms:
                if implements(self.stages.plugins[name], "observe") and row.scheme:
                    chosen.setdefault(name, row.scheme)
        asked = {name: self.stages.observe(name, site, scheme) for name, scheme in chosen.items()}
        static = [row.scheme for row in rows if static_inputs(row.scheme)]
        scheme = static[0] if static else rows[0].scheme
        assert scheme is not None
        return SiteWatch(
            site,
            scheme,
            {name: accumulator for name, accumulator in asked.items() if accumulator is not None},
            Sample(),
            limits_of(scheme.inputs) if static and scheme.inputs else None,
            rows[0].layer.dtype,
        )

    def _cache_listener(self, site: Site, row: CacheRow) -> SiteWatch:
        accumulator = self.stages.observe(row.algorithm, site, row.scheme)
        listening = {} if accumulator is None else {row.algorithm: accumulator}
        return SiteWatch(site, row.scheme, listening, Sample(), None, site.dtype)

    def _pass(self, sites: Mapping[str, SiteWatch], after: Activations | None = None) -> None:
        paired = {name for name, watch in sites.items() if any(a.paired for a in watch.accumulators())}
        beside: dict[str, list[Array]] = {}
        heard: list[str] = []
        each_once = False

        def remember(name: str, x: Array) -> None:
            if name in paired:
                beside.setdefault(name, []).append(namespace(x).asarray(x, copy=True))

        def listen(name: str, x: Array) -> None:
            watch = sites.get(name)
            if watch is None or x.shape[0] == 0:
                return
            entering = (
                f"the activation entering {', '.join(watch.site.layers)}" if watch.site.layers else watch.site.name
            )
            check_finite(x, f"{self.block.name}: {entering}")
            watch.tokens += int(x.shape[0])
            unquantized = beside[name].pop(0) if beside.get(name) else None
            if unquantized is not None and unquantized.shape != x.shape:
                unquantized = None
            for accumulator in watch.accumulators():
                if accumulator.paired:
                    accumulator.update_pair(x, unquantized)
                else:
                    accumulator.update(x)
            heard.append(name)
            if each_once and after is None and len(set(heard)) == len(sites):
                raise Heard

        for number, batch in enumerate(self.batches):
            beside.clear()
            heard.clear()
            if paired and self.floats:
                with self.block.computing(self.exact):
                    self.block.run(*self.floats[number], remember)
            try:
                with self.block.computing(self.exact, observing=True):
                    returned = self.block.run(*batch, listen)
            except Heard:
                continue
            if after is not None:
                after.write(number, returned)
            each_once = sorted(heard) == sorted(sites)

    def observed(self, algorithm: str) -> dict[str, Any]:
        """What one algorithm's own accumulators found, by site; sites that no token reached are missing."""
        return {
            name: watch.by_algorithm[algorithm].result()
            for name, watch in self.sites.items()
            if algorithm in watch.by_algorithm and watch.tokens
        }

    def as_seen(self) -> OnSite:
        """An ``on_site`` that makes the block's activations what an engine will see, by what was observed so far."""
        known: dict[str, OnSite] = {}

        def replace(name: str, x: Array) -> Array | None:
            if name not in known:
                known[name] = self._as_seen(name)
            return known[name](name, x)

        return replace

    def _as_seen(self, name: str) -> OnSite:
        site = self.block.sites[name]
        if name in self.caches:
            args = self.caches[name].args
            return fake_quantizer({}, {} if args is None else {name: (site, args, self._static_cache(name))})
        schemes = [self.rows[layer].scheme for layer in site.layers]
        # A site that feeds layers of different activation schemes stays float here: only one of them differs.
        if not schemes or schemes[0] is None or any(s is None or s.inputs != schemes[0].inputs for s in schemes):
            return fake_quantizer({})
        static = self.sites[name].static_input() if name in self.sites else None
        return fake_quantizer({name: (schemes[0], static)}, online=self.block.online)

    def account(self, transform: Transform) -> None:
        """Account for a transform that was applied: rewrite what was observed, or observe it again."""
        again = {}
        for name in transform.sites:
            watch = self.sites.get(name)
            if watch is None or not watch.tokens:
                continue
            if not all(_rewrite(accumulator, transform) for accumulator in watch.accumulators()):
                fresh = self._listeners(watch.site)
                assert fresh is not None
                again[name] = self.sites[name] = fresh
        if again:
            self._pass(again)

    def renew_caches(self, transforms: Iterable[Transform]) -> None:
        """Observe again the caches whose values some transforms have changed: those that lie between the layer that
        absorbed a scale and the sites that see it."""
        order = list(self.block.sites)
        again = {}
        for transform in transforms:
            if isinstance(transform, SiteTransform):
                continue
            producer: Layer | None = self.block.layers.get(transform.fold.producer)
            if producer is None:  # a norm: what its scale changes, the layers after it undo
                continue
            first, last = order.index(producer.site), max(map(order.index, transform.fold.sites))
            for name in order[first:last]:
                if name in self.caches and (fresh := self._listeners(self.block.sites[name])) is not None:
                    again[name] = self.sites[name] = fresh
        if again:
            self._pass(again)

    def static_caches(self) -> dict[str, StaticInput | None]:
        """The static parameters of every site of a cache that is quantized; None for what is dynamic. Raises
        ``CalibrationError`` when nothing arrived there."""
        return {name: self._static_cache(name) for name in self.caches}

    def _static_cache(self, name: str) -> StaticInput | None:
        row = self.caches[name]
        if row.args is None or row.args.dynamic:
            return None
        watch = self.sites[name]
        if not watch.tokens:
            raise CalibrationError(
                f"{name}: its scheme has a static KV cache, but no calibration token reached it; "
                "give more or other calibration data, or a dynamic kv_cache"
            )
        static = watch.by_algorithm[row.algorithm].result()
        if not isinstance(static, StaticInput):
            raise PluginError(f"'{row.algorithm}' found {static!r:.120} for {name}; expected a StaticInput")
        return static


def _rewrite(accumulator: Accumulator, transform: Transform) -> bool:
    if isinstance(transform, ChannelScale):
        if transform.shift is not None:
            return False
        return accumulator.rescale(transform.fold.expand(transform.scale))
    return accumulator.transform(transform.map)


Cached = tuple[Site, QuantizationArgs, StaticInput | None]
"""A site of a cache, and how it is quantized."""


def fake_quantizer(
    sites: Mapping[str, tuple[QuantizationScheme, StaticInput | None]],
    caches: Mapping[str, Cached] | None = None,
    online: Mapping[str, LinearMap] | None = None,
) -> OnSite:
    """An ``on_site`` that makes activations what an engine would see; everything by the names of sites. ``online``:
    the maps that made them, for what they keep of a range."""
    kept = {name: map.keep for name, map in (online or {}).items()}

    def replace(name: str, x: Array) -> Array | None:
        if caches and name in caches:
            return _recalled(x, *caches[name])
        scheme, static = sites.get(name, (None, None))
        if scheme is None or scheme.inputs is None:
            return None
        if scheme.inputs.dynamic:
            return numerics.fake_quantize(x, scheme.inputs, keep=kept.get(name, 1.0))
        if static is None:
            return None
        return numerics.fake_quantize(x, scheme.inputs, static.scale, static.zero_point)

    return replace


def _recalled(x: Array, site: Site, args: QuantizationArgs, static: StaticInput | None) -> Array:
    parameters = (static.scale, static.zero_point) if static else ()
    return numerics.fake_quantize_cache(x, site.heads, args, *parameters)
