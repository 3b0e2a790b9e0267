"""What attention caches, through transformers' own Cache API: any attention that hands its keys and values to a cache
is seen, and reads back what it is answered.

Discovery runs the model once on nothing, as ``topology`` does. Products are answered with constants there, so a key
depends on the layers that make it and on nothing before them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from gs_core.errors import reason
from gs_hf.topology import PROBE, following, same, thin_parameters
from gs_hf.watch import Use, Watch, identity

OnCache = Callable[[torch.Tensor, torch.Tensor, int], tuple[torch.Tensor, torch.Tensor]]
"""``(key, value, layer_idx)`` to what attention computes with; ``(batch, heads, length, size)``."""


def listening(module: torch.nn.Module, on_cache: OnCache) -> Any:
    """An empty cache for one forward of ``module`` that keeps nothing. Raises what transformers raises."""
    from transformers import DynamicCache

    class Listening(DynamicCache):
        def update(self, key_states: Any, value_states: Any, layer_idx: int, *_: Any, **__: Any) -> Any:
            return on_cache(key_states, value_states, layer_idx)

    return Listening(config=module.config)


@dataclass(frozen=True)
class Cached:
    """What one attention module, of one block, hands to its cache.

    index: its number in the cache. key, value: heads, and channels of a head. maker: the parameter whose product is
    the key before its rotation, or why there is none. used: the parameters used until then, in order; ``made`` of them
    until the key was made.
    """

    module: str
    index: int
    key: tuple[int, int]
    value: tuple[int, int]
    maker: str | None
    rotated_only: str
    used: list[str] = field(compare=False)
    made: int


def observe_caches(module: torch.nn.Module) -> tuple[list[Cached], str]:
    """What every attention module caches, in the order of execution; or nothing, and why."""
    from transformers import PreTrainedModel

    if not isinstance(module, PreTrainedModel):
        return [], f"{type(module).__name__} is no transformers model, whose caches can be listened to"
    try:
        seen = _Observation(module)
        with thin_parameters(module) as parameters:
            seen.run(parameters)
            with torch.no_grad(), Watch(parameters, following):
                alone = _logits(module)
                with_cache = _logits(module, listening(module, lambda key, value, index: (key, value)))
    except Exception as error:  # the model is a stranger's code
        return [], f"the model does not run with a cache: {reason(error)}"
    if not seen.updates:
        return [], "no attention of this model hands keys and values to a cache"
    if not same([alone], [with_cache]):
        return [], "the model computes otherwise when it is given a cache"
    try:
        return [seen.cached(update) for update in seen.updates], ""
    except ValueError as error:
        return [], str(error)


@dataclass
class _Update:
    module: str
    index: int
    key: torch.Tensor
    value: torch.Tensor
    used: list[str]


class _Observation:
    """One run in which every product is a constant that remembers, by its gradient, what was made of it."""

    def __init__(self, module: torch.nn.Module):
        self.module = module
        self.updates: list[_Update] = []
        self._uses: dict[str, Use] = {}
        self._made: list[tuple[str, torch.Tensor]] = []
        self._multiplied: list[torch.Tensor] = []  # kept: a freed tensor's storage could come back as another one's

    def run(self, parameters: dict[str, torch.Tensor]) -> None:
        with _callers(self.module) as running, torch.enable_grad(), Watch(parameters, self._on_use):

            def on_cache(key: torch.Tensor, value: torch.Tensor, index: int) -> tuple[torch.Tensor, torch.Tensor]:
                self.updates.append(_Update(running[-1], index, key, value, list(self._uses)))
                return key, value

            _logits(self.module, listening(self.module, on_cache))

    def _on_use(self, use: Use, x: torch.Tensor, compute: Callable, weight: torch.Tensor) -> torch.Tensor:
        self._multiplied.append(x)
        if weight.ndim > 2:
            return compute(x)
        answer = torch.linspace(-1, 1, use.outputs, dtype=x.dtype).expand(*x.shape[:-1], use.outputs).clone()
        self._uses.setdefault(use.parameter, use)
        self._made.append((use.parameter, answer.requires_grad_()))
        return answer * 1.0  # not itself a leaf, which nothing may be written into

    def cached(self, update: _Update) -> Cached:
        """Raises ``ValueError`` for what is no key and value."""
        for x in (update.key, update.value):
            if x.ndim != 4 or (x.shape[0], x.shape[2]) != PROBE.shape:
                raise ValueError(f"{update.module} caches {tuple(x.shape)}, not (batch, heads, length, channels)")
        if identity(update.key) in map(identity, self._multiplied):
            raise ValueError(f"{update.module} caches what another layer makes keys and values of, not them")
        if sum(other.module == update.module for other in self.updates) > 1:
            raise ValueError(f"{update.module} caches more than one key for a token")
        heads, size = int(update.key.shape[1]), int(update.key.shape[3])
        makers = self._makers(update.key)
        maker, rotated_only = None, ""
        if len(makers) != 1:
            rotated_only = f"{' and '.join(makers) or 'no layer'} of {update.module} make its keys together"
        elif self._uses[makers[0]].outputs != heads * size:
            rotated_only = f"{makers[0].removesuffix('.weight')} makes more than the keys"
        else:
            maker = makers[0]
        made = update.used.index(maker) + 1 if maker else len(update.used)
        value = int(update.value.shape[1]), int(update.value.shape[3])
        return Cached(update.module, update.index, (heads, size), value, maker, rotated_only, update.used, made)

    def _makers(self, key: torch.Tensor) -> list[str]:
        """The products that a key is made of."""
        if not key.requires_grad:
            return []
        names, answers = zip(*self._made, strict=True)
        found = torch.autograd.grad(key.sum(), answers, allow_unused=True, retain_graph=True)
        return [name for name, gradient in zip(names, found, strict=True) if gradient is not None]


def _logits(module: torch.nn.Module, cache: Any = None) -> torch.Tensor:
    return module(torch.from_numpy(PROBE), past_key_values=cache, use_cache=False).logits


@contextmanager
def _callers(module: torch.nn.Module) -> Iterator[list[str]]:
    """The names of the modules that are running, the innermost last."""
    running: list[str] = []
    handles = []

    def leave(*_: Any) -> None:
        running.pop()

    for name, child in module.named_modules():
        handles.append(child.register_forward_pre_hook(lambda *_, name=name: running.append(name)))
        handles.append(child.register_forward_hook(leave))
    try:
        yield running
    finally:
        for handle in handles:
            handle.remove()
