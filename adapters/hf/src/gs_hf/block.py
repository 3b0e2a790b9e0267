"""One decoder block: its weights, run under observation, rewritten, and handed back.

Parameters are float32, but for the matrices of linear layers: those stay as they are stored until something is written
into them.
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from gs_core import CalibrationError, Fold, Layer, LayerInfo
from gs_core.applying import Keep, Norm, WritableBlock
from gs_core.arrays import RawTensor, astype, to_raw
from gs_core.interfaces import Batch, OnSite, through
from gs_core.probing import SAMPLES, TOKENS, on_few
from gs_core.storage import Tensor
from gs_hf.caches import OnCache, listening
from gs_hf.float64 import Float64, has_float64
from gs_hf.folding import find_folds
from gs_hf.int8 import Int8
from gs_hf.listeners import cache_listener, listener
from gs_hf.naming import Place, layer_name
from gs_hf.running import fast_dtype, take_up
from gs_hf.watch import OnUse, Use, Watch, unwatched

if TYPE_CHECKING:
    from gs_hf.model import HFModel
    from gs_hf.residual import Residual


class HFLayer(Layer):
    """A layer as places in parameters, or, where nothing will run, as pieces of the checkpoint."""

    def __init__(self, info: LayerInfo, block: "HFBlock", places: list[Place]):
        super().__init__(info)
        self._block, self._places = block, places

    def weight(self) -> torch.Tensor:
        return self._whole().to(torch.float32, copy=True)

    def view(self) -> torch.Tensor:
        return self._whole().to(torch.float32)

    def _whole(self) -> torch.Tensor:
        pieces = [self._block.piece(place) for place in self._places]
        return torch.cat(pieces) if len(pieces) > 1 else pieces[0]

    def set_weight(self, weight: torch.Tensor) -> None:
        start = 0
        for place in self._places:
            if place.parameter in self._block.parameters:
                part = place.of(self._block.parameter(place.parameter))
                part.copy_(weight[start : start + part.shape[0]])
                start += part.shape[0]


class HFBlock(WritableBlock):
    """See ``gs_core.applying.WritableBlock``."""

    def __init__(self, model: "HFModel", index: int, probe: Batch | None):
        self.model, self.index, self.name = model, index, model.blocks[index] or model.name
        self.prefix = f"{model.blocks[index]}." if model.blocks[index] else ""
        self.parameters: dict[str, torch.Tensor] = {}
        if probe is not None:
            self.parameters = model.weights.load(self.prefix, as_stored=self._narrow())
        self._probe = probe
        self.int8 = Int8()
        self.changed: set[str] = set()
        self._written: set[str] = set()
        self._working: dict[str, torch.Tensor] | None = None  # parameters in working precision while verifying
        self.norms: dict[str, Norm] = {}
        self.sites = model.sites(index)
        self.layers: dict[str, Layer] = {
            info.name: HFLayer(info, self, model.found.places[info.name])
            for info in model.layers
            if info.block == index
        }

    def forget(self) -> None:
        """Give the memory back."""
        self.model.weights.forget(self.parameters)
        self.parameters, self.int8 = {}, Int8()

    def rotate(self, residual: "Residual") -> None:
        """Rewrite it for a rotated residual stream; see ``gs_core.Model.rotate``."""
        assert self._probe is not None, "a model with a rotated residual stream is run"
        residual.enter(self, self._probe)

    def piece(self, place: Place) -> torch.Tensor:
        """To be read: a view of the loaded parameter, or the checkpoint's when the block was opened without weights."""
        loaded = self.parameters.get(place.parameter)
        return self.model.weights.read(place) if loaded is None else place.of(loaded)

    def _narrow(self) -> set[str]:
        """Parameters that nothing but products reads: those take them in whatever dtype they compute in."""
        mine = [
            place
            for info in self.model.layers
            if info.block == self.index
            for place in self.model.found.places[info.name]
        ]
        return {place.parameter for place in mine if self.is_linear(place.parameter)}

    def is_linear(self, parameter: str) -> bool:
        """Whether the parameter is what ``torch.nn.Linear`` multiplies by; other modules may look at its dtype."""
        owner = self.model.module.get_submodule(parameter.rpartition(".")[0])
        return type(owner).forward is torch.nn.Linear.forward

    # --- running ---------------------------------------------------------------------------------------------

    def run(
        self,
        tokens: np.ndarray,
        previous: Mapping[str, RawTensor] | None,
        on_site: OnSite | None = None,
        weights: Mapping[str, torch.Tensor] | None = None,
    ) -> dict[str, torch.Tensor]:
        taken, on_site = take_up(previous, self.model.device), through(self.online, self.sites, on_site)
        on_use = listener(self, on_site, weights or {}) if on_site is not None or weights else None
        on_cache = None if on_site is None else cache_listener(self, on_site)
        return self.compute(tokens, taken, on_use, on_cache, weights is not None)

    def _dtype(self) -> torch.dtype:
        """That of the block's weights where products of it are faster than float32's, else float32."""
        stored = {info.dtype for info in self.model.layers if info.block == self.index}
        return fast_dtype(stored.pop(), self.model.device) if len(stored) == 1 else torch.float32

    def compute(
        self,
        tokens: np.ndarray,
        previous: dict[str, torch.Tensor] | None,
        on_use: OnUse | None = None,
        on_cache: OnCache | None = None,
        gradient: bool = False,
    ) -> dict[str, torch.Tensor]:
        runner = self.model.runner
        assert runner is not None, "the block was opened without weights"
        cache = None if on_cache is None else listening(self.model.module, on_cache)
        dtype = torch.float32 if on_use is None or gradient or self.exact else self._dtype()
        if self._working is not None:
            dtype = torch.float64
            previous = previous and {n: x.double() if x.is_floating_point() else x for n, x in previous.items()}
        with self.precision(), Watch(self.parameters, on_use or unwatched, dtype):
            return runner.block(self.index, tokens, previous, cache, gradient)

    # --- verifying -------------------------------------------------------------------------------------------

    @contextmanager
    def verifying(self) -> Iterator[None]:
        """See ``gs_core.Block.verifying``. Copies only the parameters that change."""
        if self._working is not None or not self._runs_in_float64():
            yield
            return
        written = self._written
        self._working, self._written, self.parameters = self.parameters, set(), dict(self.parameters)
        try:
            yield
        finally:
            for name, value in self._working.items():
                if self.parameters[name] is not value:
                    self.model.weights.put(name, value)
            self.parameters, self._working, self._written = self._working, None, written

    def precision(self) -> AbstractContextManager:
        """A context for all computations of the block: float64 while it is verified, else no change."""
        return nullcontext() if self._working is None else Float64()

    def _runs_in_float64(self) -> bool:
        """True if the device and the operators of the module support float64. Tried once for each model."""
        if self.model.float64 is None:
            self.model.float64 = has_float64(self.model.device) and self._tried_in_float64()
        return self.model.float64

    def _tried_in_float64(self) -> bool:
        assert self._probe is not None, "the block was opened without weights"
        self._working = self.parameters
        try:
            on_few(
                lambda batch: self.compute(batch[0], take_up(batch[1], self.model.device)), self._probe, SAMPLES, TOKENS
            )
        except CalibrationError:
            return False
        finally:
            self._working = None
        return True

    def backward(
        self,
        tokens: np.ndarray,
        previous: Mapping[str, RawTensor] | None,
        gradient: Mapping[str, RawTensor],
        on_gradient: Callable[[str, torch.Tensor], None] = lambda layer, gradient: None,
    ) -> dict[str, torch.Tensor]:
        taken, known = take_up(previous, self.model.device), take_up(gradient, self.model.device)
        assert known is not None
        arrived = None if taken is None else taken["hidden"].requires_grad_()
        on_site = through(self.online, self.sites, None)
        as_usual = unwatched if on_site is None else listener(self, on_site, {})

        def on_use(use: Use, x: torch.Tensor, compute: Callable, weight: torch.Tensor) -> torch.Tensor:
            # Nothing before the first block is a variable.
            y = as_usual(use, x if x.requires_grad else x.detach().requires_grad_(), compute, weight)
            for name, rows in self._rows_of(use):
                # An argument of its own: the hook is called after the loop.
                y.register_hook(lambda g, name=name, rows=rows: on_gradient(name, g.reshape(-1, g.shape[-1])[:, rows]))
            return y

        with torch.enable_grad():
            on_cache = None if on_site is None else cache_listener(self, on_site)
            self.compute(tokens, taken, on_use, on_cache, True)["hidden"].backward(known["hidden"])
        return {} if arrived is None or arrived.grad is None else {"hidden": arrived.grad}

    def _rows_of(self, use: Use) -> Iterator[tuple[str, slice]]:
        """The layers of a product, and which of its features are whose."""
        if self.model.found.site_of.get((use.parameter, use.expert)) in self.sites:
            for place in self.model.naming.by_parameter[use.parameter]:
                name = layer_name(place)
                if place.expert == use.expert and self.model.found.places[name] == [place]:
                    yield name, slice(place.start, place.start + (place.rows or use.outputs))

    # --- transforms ------------------------------------------------------------------------------------------

    def folds(self) -> Sequence[Fold]:
        return () if self._probe is None else find_folds(self, self._probe)

    def parameter(self, name: str) -> torch.Tensor:
        self._written.add(name)
        dtype = torch.float32 if self._working is None else torch.float64
        if self.parameters[name].dtype != dtype:
            self.parameters[name] = self.model.weights.widen(name, self.parameters[name], dtype)
        return self.parameters[name]

    def original(self, name: str) -> Callable[[], torch.Tensor] | None:
        if self._working is not None:
            return None if name in self._written else partial(self._working.__getitem__, name)
        return None if name in self._written | self.changed else partial(self._read, name)

    def _read(self, name: str) -> torch.Tensor:
        value = self.model.weights.value(name)
        assert value is not None, "it was loaded"
        return value

    def producing(self, layer: str, keep: Keep) -> tuple[torch.Tensor, torch.Tensor | None]:
        (place,) = self.model.found.places[layer]
        weight, bias = place.of(keep(place.parameter)), self.bias_of(place.parameter, place.expert)
        if bias is None:
            return weight, None
        part = keep(bias)
        return weight, part if place.rows is None else part[place.start : place.start + len(weight)]

    def consuming(self, site: str, keep: Keep) -> Iterator[tuple[torch.Tensor, str | None]]:
        for parameter, expert in self.model.found.keys_at[site]:
            value = keep(parameter)
            part = value if expert is None else value[expert]
            yield part.T if parameter in self.model.found.transposed else part, self.bias_of(parameter, expert)

    def stranger(self, site: str) -> str | None:
        mine = {place.parameter for layer in self.sites[site].layers for place in self.model.found.places[layer]}
        return next((parameter for parameter, _ in self.model.found.keys_at[site] if parameter not in mine), None)

    def bias_of(self, parameter: str, expert: int | None = None) -> str | None:
        """The name of the bias beside a weight, or None when it has none."""
        bias = parameter.removesuffix("weight") + "bias"
        return bias if expert is None and parameter.endswith(".weight") and bias in self.parameters else None

    def stored_dtype(self, parameter: str) -> str:
        return self.model.checkpoint[self.model.naming.by_parameter[parameter][0].source].dtype

    # --- writing ---------------------------------------------------------------------------------------------

    def rest(self, quantized: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        found = self.model.found
        weights = {place.source for name in quantized for place in found.places[name]}
        for source, tensor in self.model.checkpoint.tensors.items():
            if source in weights or source not in found.sources_in_blocks:
                continue
            places = self.model.naming.by_source.get(source, [])
            if places and not all(p.parameter.startswith(self.prefix) for p in places):
                continue
            if not places and not self._opaque_here(source):
                continue
            if any(place.parameter in self.changed for place in places):
                pieces = [self.piece(place) for place in places]
                value = torch.cat(pieces) if len(pieces) > 1 else pieces[0]
                yield source, to_raw(astype(value, tensor.dtype))
            else:
                yield source, tensor

    def _opaque_here(self, source: str) -> bool:
        return any(
            target.startswith(self.prefix) and any(source in names for names in opaque.sources.values())
            for target, opaque in self.model.naming.opaque.items()
        )
