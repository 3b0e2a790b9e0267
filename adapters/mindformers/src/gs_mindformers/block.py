"""One decoder block: its weights in float32, run under observation, rewritten, and handed back."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gs_core import Fold, Layer, LayerInfo, Site
from gs_core.applying import Keep, Kept, Norm, WritableBlock
from gs_core.arrays import RawTensor, astype, from_raw, to_raw
from gs_core.interfaces import Batch, OnSite, through
from gs_core.storage import Tensor
from gs_mindformers.found import Place

if TYPE_CHECKING:
    from gs_mindformers.model import MFModel


class MFLayer(Layer):
    """A layer as a place in a parameter, or, where nothing will run, as a tensor of the checkpoint."""

    def __init__(self, info: LayerInfo, block: "MFBlock", place: Place):
        super().__init__(info)
        self._block, self._place = block, place

    def weight(self) -> np.ndarray:
        return np.array(self._block.piece(self._place), np.float32, order="C")

    def view(self) -> np.ndarray:
        return np.asarray(self._block.piece(self._place), np.float32)

    def set_weight(self, weight: np.ndarray) -> None:
        if self._place.parameter in self._block.values:
            self._place.of(self._block.parameter(self._place.parameter))[...] = weight


class MFBlock(WritableBlock):
    """See ``gs_core.applying.WritableBlock``. ``values``: the block's parameters in float32 by name; empty when it will
    not run."""

    def __init__(self, model: "MFModel", index: int, probe: Batch | None):
        self.model, self.index, self.name = model, index, model.blocks[index] or model.name
        self._probe = probe
        if probe is not None:
            model.running()  # says so at once when there is no network
        mine = [e for e in model.weights if model.block_of(e.parameter) == index]
        self.values = {e.parameter: model.weights.read(e.parameter) for e in mine} if probe is not None else {}
        self._entries = mine
        self._stale: set[str] = set(self.values)
        self._standins: dict[str, Any] = {}
        self.changed: set[str] = set()
        self.norms: dict[str, Norm] = {}
        self.sites = model.found.sites[index]
        infos = [info for info in model.layers if info.block == index]
        self.layers: dict[str, Layer] = {i.name: MFLayer(i, self, model.found.places[i.name]) for i in infos}

    def parameter(self, name: str) -> np.ndarray:
        self._stale.add(name)
        return self.values[name]

    def piece(self, place: Place) -> np.ndarray:
        """A layer's weight, ``(out, in)``."""
        if place.parameter in self.values:
            return place.of(self.values[place.parameter])
        stored = from_raw(self.model.weights.at(place.parameter, place.expert).tensor.read())
        return astype(stored.T if place.transposed else stored, "float32")

    # --- running ---------------------------------------------------------------------------------------------

    def run(
        self,
        tokens: np.ndarray,
        previous: Mapping[str, RawTensor] | None,
        on_site: OnSite | None = None,
        weights: Mapping[str, np.ndarray] | None = None,
    ) -> dict[str, np.ndarray]:
        on_site, kept = through(self.online, self.sites, on_site), Kept(self)
        for name, weight in (weights or {}).items():
            place = self.model.found.places[name]
            place.of(kept(place.parameter))[...] = weight
        try:
            if on_site is None:
                return self.compute((tokens, previous))
            return self.compute((tokens, previous), self._listener(on_site), self._cache_listener(on_site))
        finally:
            kept.restore()

    def compute(self, batch: Batch, on_use: Any = None, swaps: Sequence[Any] = ()) -> dict[str, np.ndarray]:
        """Run with ``on_use`` asked for every product (see ``watch.Use``), and other things swapped."""
        from gs_mindformers.running import take_up
        from gs_mindformers.watch import listening

        running = self.model.running()
        for name in self._stale:
            self._refresh(name)
        self._stale.clear()
        standins = [*running.outside, *running.put(self._standins)]
        held = [h for h in running.structure.held.values() if h.parameter in self.values]
        # Experts compute only in our way on most devices, whether anybody listens or not.
        heard = held if on_use is not None else [h for h in held if h.experts is not None]
        listeners = listening(heard, on_use or (lambda use: use.compute(use.x)))
        tokens, previous = batch
        return running.runner.block(self.index, tokens, take_up(previous), [*standins, *listeners, *swaps])

    def _refresh(self, name: str) -> None:
        """Make the network's side of a parameter what ours is. On the CPU they are one memory from then on."""
        from gs_mindformers.tensors import to_numpy, to_parameter

        standin = self._standins.get(name)
        if standin is None or not np.shares_memory(to_numpy(standin), self.values[name]):
            self._standins[name] = to_parameter(name, self.values[name])
            self.values[name] = to_numpy(self._standins[name])

    def _listener(self, on_site: OnSite) -> Any:
        """Call ``on_site`` once for each tensor that arrives at a site, however many layers it feeds."""
        from gs_mindformers.tensors import to_numpy, to_tensor

        last: dict[str, tuple[Any, Any]] = {}

        def on_use(use: Any) -> Any:
            site = self.model.found.site_of.get(use.key)
            if site not in self.sites or not use.x.shape[0]:
                return use.compute(use.x)
            seen = last.get(site)
            if seen is None or seen[0].arrived() != use.arrived():
                flat = to_numpy(use.x).reshape(-1, use.x.shape[-1]).astype(np.float32, copy=False)
                replaced = on_site(site, flat)
                x = use.x if replaced is None else to_tensor(np.asarray(replaced, np.float32).reshape(use.x.shape))
                seen = last[site] = (use, x)
            return use.compute(seen[1])

        return on_use

    def _cache_listener(self, on_site: OnSite) -> Sequence[Any]:
        """Call ``on_site`` for keys and values on their way into a cache."""
        from gs_mindformers.caches import listening
        from gs_mindformers.tensors import to_numpy, to_tensor

        def answer(site: Site, x: Any) -> Any:
            replaced = on_site(site.name, to_numpy(x).reshape(-1, site.features).astype(np.float32, copy=False))
            return x if replaced is None else to_tensor(np.asarray(replaced, np.float32).reshape(x.shape))

        def on_cache(path: str, key: Any, value: Any) -> Any:
            sites = self.model.found.cache_sites.get(path)
            if sites is None or sites[0].name not in self.sites:
                return key, value
            return answer(sites[0], key), answer(sites[1], value)

        return listening(self.model.running().structure, on_cache)

    # --- transforms ------------------------------------------------------------------------------------------

    def folds(self) -> Sequence[Fold]:
        from gs_mindformers.folding import find_folds

        return () if self._probe is None else find_folds(self, self._probe)

    def stored_dtype(self, parameter: str) -> str:
        return self.model.weights.at(parameter, None).tensor.dtype

    def beside(self, parameter: str, *leaves: str) -> str | None:
        """The parameter beside another one that has one of these names."""
        found = [name for leaf in leaves if (name := f"{parameter.rpartition('.')[0]}.{leaf}") in self.values]
        return found[0] if found else None

    def producing(self, layer: str, keep: Keep) -> tuple[np.ndarray, np.ndarray | None]:
        place = self.model.found.places[layer]
        weight, bias = place.of(keep(place.parameter)), self.beside(place.parameter, "bias")
        if bias is None:
            return weight, None
        return weight, keep(bias) if place.expert is None else keep(bias).reshape(-1, len(weight))[place.expert]

    def consuming(self, site: str, keep: Keep) -> Iterator[tuple[np.ndarray, None]]:
        for place in self.model.found.fed[site]:
            yield place.of(keep(place.parameter)), None  # no fold here shifts

    def stranger(self, site: str) -> str | None:
        mine = [self.model.found.places[layer] for layer in self.sites[site].layers]
        return next((place.parameter for place in self.model.found.fed[site] if place not in mine), None)

    # --- writing ---------------------------------------------------------------------------------------------

    def rest(self, quantized: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        for entry in self._entries:
            if entry.source.removesuffix(".weight") in quantized:
                continue
            if entry.parameter in self.changed:
                value = self.values[entry.parameter]
                part = value if entry.expert is None else value[entry.expert]
                yield entry.source, to_raw(astype(np.ascontiguousarray(part), entry.tensor.dtype))
            else:
                yield entry.source, entry.tensor
