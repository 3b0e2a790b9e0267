"""Targets that make up for what was quantized before: a layer is to give what it gives in the float model.

Layers are quantized in the order of execution, and each site is seen anew when all before it are. With ``x`` what
arrives there now and ``x'`` what arrived when nothing was quantized, the loss of ``Ŵ`` is ``‖Ŵx - Wx'‖²``: up to a
constant, that of rounding ``W + W Σ(x' - x)xᵀ (Σ xxᵀ)⁻¹`` seen by ``x`` alone. So only the target changes, and all
that GPTQ does with it stays as it is. Li et al., "GPTAQ", https://arxiv.org/abs/2504.02692; Zhang et al., "Qronos",
https://arxiv.org/abs/2505.11695. A layer whose output is added to what the block returns is to make up for everything
that the block would return otherwise, not only for its own part.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from gs_core import Array, Block, Data, Layer, QuantizedTensor, namespace, numerics
from gs_core.arrays import astype, device, from_raw
from gs_core.interfaces import Batch, OnSite
from gs_core.streams import pick_batch
from gs_gptq.hessian import Hessian

EXACT = 1e-3
"""How far a layer's output may differ from what it adds to the block's, relative to its norm."""


class Reached(BaseException):
    """Thrown out of a run that has shown what it was for."""


@dataclass
class Arrivals:
    """What is known of a site: the second moments of what arrives, and what is missing there, float32.

    shift: ``Σ (x' - x) xᵀ``, ``(features, features)``. lack: ``Σ (y' - y) xᵀ``, ``(hidden, features)``, with ``y`` what
    the block returns while the site's only layer, which is added to that, is still the float one. At most one of them;
    None where it is not known which tokens correspond.
    """

    hessian: Hessian = field(default_factory=Hessian)
    shift: Array = None
    lack: Array = None

    def target(self, weight: Array, solve: Callable[[Array], Array]) -> Array:
        """What to round in place of ``weight``, ``(rows, features)``. solve: ``(features, n)`` by the Hessian."""
        missing = weight @ self.shift if self.shift is not None else self.lack
        if missing is None:
            return weight
        xp = namespace(weight)
        return weight + xp.permute_dims(solve(xp.permute_dims(missing, (1, 0))), (1, 0))


class Prefix:
    """A block that is quantized up to some site, beside what it was. ``close`` gives it its own weights back."""

    def __init__(self, block: Block, data: Data):
        self.block, self.data = block, data
        self._weights: dict[str, Array] = {}

    def close(self) -> None:
        for name, weight in self._weights.items():
            self.block.layers[name].set_weight(weight)

    def quantized(self, layer: Layer, tensor: QuantizedTensor) -> None:
        """From now on the block computes with this."""
        self._weights[layer.name] = layer.weight()
        layer.set_weight(numerics.dequantize(tensor))

    def steps(self, layers: Sequence[Layer]) -> list[dict[str, list[Layer]]]:
        """The layers by site, in the order of execution; sites that differ in a number only (experts) together."""
        steps: dict[str, dict[str, list[Layer]]] = {}
        for site in self.block.sites:
            sharing = [layer for layer in layers if layer.site == site]
            if sharing:
                steps.setdefault(re.sub(r"\d+", "#", site), {})[site] = sharing
        return list(steps.values())

    def arrivals(self, sites: Mapping[str, Sequence[Layer]]) -> dict[str, Arrivals]:
        """Of one step's sites; those that no token reached are missing."""
        found: dict[str, Arrivals] = {}
        data, added = self.data, self._added(sites)
        for number, (tokens, _) in enumerate(data.batches):
            floats = {} if added else self._see(sites, data.floats[number], weights=self._weights)[0]
            seen, hidden = self._see(sites, data.batches[number], data.as_seen, whole=added)
            for site, x in seen.items():
                arrived = found.setdefault(site, Arrivals())
                arrived.hessian.update(x)
                if added:
                    arrived.lack = _add(arrived.lack, self._missing(number, hidden), x)
                elif site in floats and floats[site].shape[0] == x.shape[0] == tokens.size:
                    arrived.shift = _add(arrived.shift, floats[site] - x, x)
        return found

    def _see(
        self,
        sites: Collection[str],
        batch: Batch,
        as_seen: OnSite | None = None,
        weights: Mapping[str, Array] | None = None,
        whole: bool = False,
    ) -> tuple[dict[str, Array], Array]:
        """What arrives at ``sites``, and what the block returns: None unless the ``whole`` of it has to run."""
        seen: dict[str, Array] = {}

        def on_site(name: str, x: Array) -> Array | None:
            replaced = None if as_seen is None else as_seen(name, x)
            if name in sites:
                seen[name] = namespace(x).asarray(x if replaced is None else replaced, copy=True)
                if not whole and len(seen) == len(sites):
                    raise Reached
            return replaced

        with suppress(Reached):
            return seen, self.block.run(*batch, on_site, weights)["hidden"]
        return seen, None

    def _missing(self, number: int, hidden: Array) -> Array:
        """How far ``hidden`` is from what the float block returns for this batch, ``(tokens, hidden)``."""
        xp = namespace(hidden)
        wanted = astype(from_raw(self.data.targets[number]["hidden"]), "float32")
        missing = xp.asarray(wanted, device=device(hidden)) - astype(hidden, "float32")
        return xp.reshape(missing, (-1, missing.shape[-1]))

    def _added(self, sites: Mapping[str, Sequence[Layer]]) -> bool:
        """Whether these are one site with one layer, whose output is added to what the block returns: found by leaving
        it out."""
        names = [name for site in sites for name in self.block.sites[site].layers]
        if len(names) != 1 or not self.data.batches:
            return False
        layer = self.block.layers[names[0]]
        batch, weight = pick_batch(self.data.batches[0], slice(0, 1)), layer.weight()
        seen, hidden = self._see(sites, batch, whole=True)
        without = self.block.run(*batch, None, {layer.name: weight * 0})["hidden"]
        xp = namespace(weight)
        added = xp.reshape(hidden - without, (-1, hidden.shape[-1]))
        given = seen[layer.site] @ xp.permute_dims(weight, (1, 0)) if seen else None
        if given is None or given.shape != added.shape:
            return False
        return float(xp.sum((added - given) ** 2)) <= EXACT**2 * float(xp.sum(given**2))


def _add(total: Array | None, left: Array, x: Array) -> Array:
    product = namespace(x).permute_dims(left, (1, 0)) @ x
    return product if total is None else total + product
