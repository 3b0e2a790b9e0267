"""Putting weights into the module, and taking them out: only what is needed."""

from collections.abc import Collection
from typing import Any

import torch

from gs_core import CheckpointError
from gs_core.arrays import RawTensor
from gs_core.errors import reason
from gs_core.storage import Checkpoint, let_go
from gs_hf.naming import Naming, Opaque, Place
from gs_hf.running import to_torch

LAZY_BYTES = 64 * 2**20
"""Parameters outside the blocks that are larger than this wait until their module is called."""


class Weights:
    """Fills the parameters of one module from a checkpoint."""

    def __init__(self, module: torch.nn.Module, naming: Naming, checkpoint: Checkpoint, device: str):
        self.module, self.naming, self.checkpoint, self.device = module, naming, checkpoint, device
        self.tied: dict[str, str] = dict(getattr(module, "all_tied_weights_keys", {}))

    def missing(self) -> list[str]:
        """Parameters that the checkpoint has nothing for (tied ones have their source's)."""
        known = set(self.naming.by_parameter) | {t for o in self.naming.opaque.values() for t in self._targets(o)}
        names = [name for name, _ in self.module.named_parameters()]
        return [n for n in names if n not in known and self.tied.get(n) not in known]

    def _targets(self, opaque: Opaque) -> list[str]:
        first, *others = opaque.converter.target_patterns
        return [opaque.target, *(opaque.target.replace(first, other) for other in others)]

    def load(
        self, prefix: str = "", among: set[str] | None = None, as_stored: Collection[str] = ()
    ) -> dict[str, torch.Tensor]:
        """Materialise every parameter and persistent buffer under ``prefix`` (or just ``among``); return them.

        Floats are in float32, but for those of ``as_stored`` that are a tensor of the checkpoint and not put together.
        """
        wanted = [n for n in self._names() if n.startswith(prefix) and (among is None or n in among)]
        loaded = {}
        for name in wanted:
            value = self.value(name, name in as_stored)
            if value is not None:
                self.put(name, value)
                loaded[name] = value
        return loaded

    def widen(self, name: str, value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Replace a loaded parameter by a copy in a wider dtype that may be written into. Returns the copy."""
        wide = value.to(dtype)
        self.put(name, wide)
        return wide

    def _names(self) -> list[str]:
        buffers = [n for n, _ in self.module.named_buffers() if n in self.naming.by_parameter]
        return [n for n, _ in self.module.named_parameters(remove_duplicate=False)] + buffers

    def value(self, name: str, as_stored: bool = False) -> torch.Tensor | None:
        """The parameter's value (``load`` says in which dtype); None when the checkpoint does not have it."""
        name = name if name in self.naming.by_parameter else self.tied.get(name, name)
        places = self.naming.by_parameter.get(name)
        if not places:
            return self._opaque_value(name)
        if len(places) == 1 and places[0].rows is None and places[0].expert is None:
            value = self.read(places[0]).to(self.device)
            return value if as_stored else _wide(value)
        shape = self.module.get_parameter(name).shape
        value = torch.empty(shape, dtype=torch.float32, device=self.device)
        for place in places:
            place.of(value).copy_(self.read(place))
        return value

    def _opaque_value(self, name: str) -> torch.Tensor | None:
        for opaque in self.naming.opaque.values():
            if name in self._targets(opaque):
                return _wide(_convert(opaque, self.module, self.checkpoint)[name].to(self.device))
        return None

    def read(self, place: Place) -> torch.Tensor:
        """The piece of the checkpoint that belongs to a place, as stored."""
        return place.of_source(to_torch(self.checkpoint[place.source].read()))

    def put(self, name: str, value: torch.Tensor) -> None:
        """Make ``value`` the module's parameter or buffer of that name."""
        path, _, leaf = name.rpartition(".")
        owner = self.module.get_submodule(path)
        if leaf in owner._buffers:
            owner._buffers[leaf] = value
        else:
            owner._parameters[leaf] = torch.nn.Parameter(value, requires_grad=False)

    def forget(self, names: dict[str, torch.Tensor]) -> None:
        """Send parameters back to the meta device."""
        for name, value in names.items():
            self.put(name, value.to("meta"))

    def load_outside(self, blocks: list[str]) -> None:
        """Materialise what lies outside the blocks: small things now, large ones when their module is called."""
        prefixes = tuple(block + "." for block in blocks)
        lazy: dict[str, set[str]] = {}
        eager = set()
        for name in self._names():
            if blocks == [""] or name.startswith(prefixes):
                continue
            owner, _, leaf = name.rpartition(".")
            tensor = getattr(self.module.get_submodule(owner), leaf)
            if tensor.numel() * 4 > LAZY_BYTES:
                lazy.setdefault(owner, set()).add(name)
            else:
                eager.add(name)
        self.load(among=eager)
        for owner, names in lazy.items():
            self._load_when_called(owner, names)

    def _load_when_called(self, owner: str, names: set[str]) -> None:
        module = self.module.get_submodule(owner)
        looks_up = isinstance(module, torch.nn.Embedding)
        mapped: list[RawTensor] = []

        def load(*_: Any) -> None:
            handle.remove()
            for name in names:
                place = (self.naming.by_parameter.get(name) or self.naming.by_parameter[self.tied[name]])[0]
                # A table that is only looked up stays where it is, in the checkpoint's dtype.
                if looks_up:
                    mapped.append(self.checkpoint[place.source].map())
                value = to_torch(mapped[-1], self.device) if looks_up else self.value(name)
                assert value is not None
                self.put(name, value)

        def looked_up(module: Any, given: Any, output: torch.Tensor) -> torch.Tensor:
            for table in mapped:
                let_go(table)
            return output.float()

        handle = module.register_forward_pre_hook(load)
        if looks_up:
            module.register_forward_hook(looked_up)


def _wide(value: torch.Tensor) -> torch.Tensor:
    return value.float() if value.is_floating_point() else value


def _convert(opaque: Opaque, module: torch.nn.Module, checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    """Run transformers' own converter on the checkpoint tensors of one group."""
    from copy import deepcopy

    converter = deepcopy(opaque.converter)
    for pattern, names in opaque.sources.items():
        for name in names:
            converter.add_tensor(opaque.target, name, pattern, lambda n=name: to_torch(checkpoint[n].read()))
    try:
        values = converter.convert(opaque.target, model=module, config=module.config)
    except Exception as error:  # a converter is another library's code and may raise anything
        raise CheckpointError(f"transformers could not convert '{opaque.target}': {reason(error)}") from error
    return {n: (v[0] if isinstance(v, list) else v) for n, v in values.items()}
