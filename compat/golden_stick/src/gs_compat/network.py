"""A live network of MindSpore: what can be quantized in it, and putting the result in its place."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from gs_compat.cells import as_cells_hold, cell, describe
from gs_compat.inner import InnerPTQConfig
from gs_compat.policies import Configs
from gs_compat.words import QuantGranularity
from gs_core import Adapter, Model, PlanError
from gs_core.arrays import from_raw
from gs_core.planning import load_format
from gs_core.storage import Checkpoint
from gs_mindformers import MindFormers
from gs_mindformers.cells import Spec, deploy, install, refusals
from gs_mindformers.cells.cache import QuantizedCache
from gs_mindformers.cells.linear import QuantizedLinear


class Opened(Adapter):
    """An adapter for one network that is open already: opening runs it, and once is enough."""

    def __init__(self, model: Model):
        self.model = model

    def refuses(self, folder: Path) -> str | None:
        return "takes one live network"

    def open(
        self, source: Any, device: str, checkpoint: Checkpoint | None = None, trust_remote_code: bool = False
    ) -> Model:
        return self.model


class LiveNetwork:
    """``layers`` and ``caches``: the names of what can be quantized, without the leading ``network.``."""

    def __init__(self, network: Any, block_types: Sequence[type] = ()):
        self.network = network
        self.model: Any = MindFormers(_present(network, block_types)).open(network, "cpu")
        self.adapter = Opened(self.model)
        self.layers = [layer.name for layer in self.model.layers]
        self.caches = [cache.name for cache in self.model.caches]

    def prepare(self, configs: Configs) -> None:
        """Put uninitialised cells in the place of the layers and caches that are quantized."""
        deploy(self.network, self._specs(configs), self._int8_caches(configs))

    def check(self, configs: Configs) -> None:
        """Raise ``PlanError`` unless there are cells for all that is to be quantized."""
        caches = self._int8_caches(configs)
        problems = refusals(self.network, self._specs(configs), caches)
        for name, config in caches.items():
            if config.kvcache_quant_granularity is QuantGranularity.PER_TOKEN:
                problems.append(f"{name}: no cell caches with a scale for each token; use PER_CHANNEL")
        if problems:
            raise PlanError(problems)

    def _specs(self, configs: Configs) -> dict[str, Spec]:
        found = {}
        for layer in self.model.layers:
            config = configs[layer.name]
            spec = cell(config, layer.shape[1]) if config else None
            if spec:
                found[layer.name] = spec
        return found

    def _int8_caches(self, configs: Configs) -> dict[str, InnerPTQConfig]:
        return {name: of for name in self.caches if (of := configs[name]) and of.kvcache_quant_dtype}

    def take(self, folder: Path, configs: Configs) -> None:
        """Put quantized cells in the place of the layers that a folder holds quantized, and load the folder."""
        columns = {layer.name: layer.shape[1] for layer in self.model.layers}
        install(self.network, as_cells_hold(Checkpoint(folder).tensors, configs, columns))

    def by_rows(self) -> None:
        """Have the folder hold every weight ``(out, in)``, as ``take_rounded`` reads it, whatever cells hold."""
        self.model.layers = [replace(layer, transposed=False) for layer in self.model.layers]

    def take_rounded(self, folder: Path, format: str) -> None:
        """Put the rounded weights of a quantized folder into the network's own parameters."""
        plain, numbers = load_format(format).read(Checkpoint(folder), {})
        weights, places = self.model.weights, self.model.found.places
        whole: dict[str, np.ndarray] = {}
        for name, tensor in plain.tensors.items():
            layer = name.removesuffix(".weight")
            entry, place, value = weights.by_source[name], places.get(layer), from_raw(tensor.read())
            if layer in numbers and (online := numbers[layer].online):  # the layer here will not divide its input
                value = value / online.scale
            into = whole.setdefault(entry.parameter, weights.read(entry.parameter))
            target = into if entry.expert is None else into[entry.expert]
            target[...] = value.T if place and place.transposed else value
        for parameter in self.network.get_parameters():
            if parameter.name in whole:
                _set(parameter, whole[parameter.name])


def quantized(network: Any) -> dict[str, str]:
    """The layers and caches that are quantized cells, and how."""
    found = {}
    for name, inside in network.cells_and_names():
        if isinstance(inside, QuantizedLinear):
            found[name] = describe(inside.spec)
        elif isinstance(inside, QuantizedCache):
            found[name] = "C8"
    return found


def pad_token(network: Any, helper: Any) -> int | None:
    """The token that fills up samples: the helper's word, else the network's."""
    if helper is not None:
        try:
            return int(helper.get_spec("pad_token_id"))
        except (KeyError, TypeError, NotImplementedError):
            pass  # a helper need not know
    found = getattr(getattr(network, "config", None), "pad_token_id", None)
    return None if found is None else int(found)


def _present(network: Any, block_types: Sequence[type]) -> list[str]:
    """The dotted names of those types that the network has cells of. Warns when it has none."""
    cells = [cell for _, cell in network.cells_and_names()]
    found = [t for t in block_types if any(isinstance(cell, t) for cell in cells)]
    if block_types and not found:
        names = ", ".join(t.__qualname__ for t in block_types)
        warnings.warn(f"decoder_layer_types: the network has no cell of {names}; its blocks are found", stacklevel=3)
    return [f"{t.__module__}.{t.__qualname__}" for t in found]


def _set(parameter: Any, value: np.ndarray) -> None:
    from mindspore import Tensor

    parameter.set_data(Tensor(value.astype(np.float32)).astype(parameter.dtype))
