"""Sites without a table of models: run the model once on nothing, and watch which layers receive one tensor.

No weight is read: every parameter is one number seen through zero strides, and the products themselves are
answered with constants, so a model of any size is watched in seconds.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from gs_core import CalibrationError, CheckpointError
from gs_core.errors import reason
from gs_hf.running import Runner, flatten, unflatten
from gs_hf.watch import Use, Watch, identity

PROBE = np.arange(16, dtype=np.int64).reshape(2, 8) % 7 + 2
"""Plain token ids: small, so that every vocabulary has them; two rows, because some models pair rows."""
CHECKED_BLOCKS = 6


@dataclass
class Topology:
    """What was seen: for each parameter used as a matrix, how, and which others got the same tensor."""

    uses: dict[str, Use] = field(default_factory=dict)
    """Parameter → how it is used, in the order of execution."""
    together: list[list[str]] = field(default_factory=list)
    """Parameters that were given one tensor, by groups in the order of execution."""


def observe(module: torch.nn.Module) -> Topology:
    """Watch a module run whose parameters may all be on the meta device. Raises ``CheckpointError``."""
    topology = Topology()
    with thin_parameters(module) as parameters, torch.no_grad():
        # Twice, with outputs rising and falling: what routes by its largest output then takes both ends.
        for sign in (1.0, -1.0):
            _observe_once(module, parameters, sign, topology)
    return topology


def _observe_once(
    module: torch.nn.Module, parameters: dict[str, torch.Tensor], sign: float, topology: Topology
) -> None:
    groups: dict[tuple, list[str]] = {}
    alive: list[torch.Tensor] = []

    def on_use(use: Use, x: torch.Tensor, compute: Callable, weight: torch.Tensor) -> torch.Tensor:
        if use.parameter not in topology.uses:
            topology.uses[use.parameter] = use
            alive.append(x)  # a freed tensor's storage could come back as another one's
            groups.setdefault(identity(x), []).append(use.parameter)
        if weight.ndim > 2:
            return compute(x)
        # Not a constant along the features: a norm of constants would be zero, and zero can be divided by.
        rising = torch.linspace(-sign, sign, use.outputs, dtype=x.dtype)
        return rising.expand(*x.shape[:-1], use.outputs).clone()

    try:
        with Watch(parameters, on_use):
            module(torch.from_numpy(PROBE), **({"use_cache": False} if hasattr(module, "config") else {}))
    except Exception as error:  # the model is a stranger's code
        raise CheckpointError(
            f"the model does not run on plain token ids, so its layers cannot be found: {reason(error)}"
        ) from error
    topology.together += groups.values()


def why_inseparable(module: torch.nn.Module, blocks: list[str]) -> str | None:
    """Why the blocks cannot be run one at a time, or None when they can.

    They can when a block is called with, and returns, the same tensors whatever the blocks before its predecessor
    returned.
    """

    runner = Runner(module, blocks, "cpu")
    indices = sorted({round(i * (len(blocks) - 1) / CHECKED_BLOCKS) for i in range(1, CHECKED_BLOCKS + 1)} - {0})
    try:
        with thin_parameters(module) as parameters, Watch(parameters, following):
            returned = runner.returns(PROBE)
            for index in indices:
                whole = [*runner.arrives(index, PROBE, returned), *flatten(returned[index]).values()]
                answers = _only_last(returned[:index])
                alone = [
                    *runner.arrives(index, PROBE, answers),
                    *flatten(runner.returns_at(index, PROBE, answers)).values(),
                ]
                if not same(whole, alone):
                    return f"block {index} takes more from the blocks before it than the last one returns"
            whole = runner.end(PROBE, returned)
            alone = runner.end(PROBE, _only_last(returned))
            if not same([whole], [alone]):
                return "what follows the blocks takes more than the last one returns"
    except CalibrationError as error:
        return str(error)
    return None


def following(use: Use, x: torch.Tensor, compute: Callable, weight: torch.Tensor) -> torch.Tensor:
    """Answers a product with what follows its input, so that a difference between two runs would show."""
    if use.expert is not None:
        return compute(x)
    mixed = (x * torch.cos(torch.arange(x.shape[-1]))).mean(-1, keepdim=True)
    mixed = mixed + torch.linspace(-1, 1, use.outputs, dtype=x.dtype)
    return mixed.expand(*x.shape[:-1], use.outputs).clone()


def _only_last(returned: list[Any]) -> list[Any]:
    """The last answer as it would come back from disk, and something else in place of those before it."""
    last = flatten(returned[-1])
    other = {n: v if n == "length" or not v.is_floating_point() else v * 1.5 + 0.25 for n, v in last.items()}
    return [unflatten(other)] * (len(returned) - 1) + [unflatten(last)]


def same(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    """Whether two runs gave the same tensors, to the bit."""
    return len(left) == len(right) and all(
        a.shape == b.shape and bool(torch.equal(torch.nan_to_num(a.float()), torch.nan_to_num(b.float())))
        for a, b in zip(left, right, strict=True)
    )


@contextmanager
def thin_parameters(module: torch.nn.Module, vary: bool = False) -> Iterator[dict[str, torch.Tensor]]:
    """Replace every meta parameter by a real one whose elements are all equal, until the context ends.

    vary: vectors (weights of norms, biases) get random elements between 0.5 and 1.5 instead.
    """
    random = torch.Generator().manual_seed(0)
    before: list[tuple[torch.nn.Module, str, torch.nn.Parameter]] = []
    known: dict[str, torch.Tensor] = {}
    shared: dict[int, torch.nn.Parameter] = {}
    for path, child in module.named_modules():
        for leaf, parameter in list(child._parameters.items()):
            if parameter is None or not parameter.is_meta:
                continue
            before.append((child, leaf, parameter))
            if id(parameter) not in shared:
                value = torch.full((1,), 0.5, dtype=parameter.dtype).expand(parameter.shape)
                if vary and parameter.ndim == 1:
                    value = (0.5 + torch.rand(parameter.shape, generator=random)).to(parameter.dtype)
                shared[id(parameter)] = torch.nn.Parameter(value, requires_grad=False)
                known[f"{path}.{leaf}" if path else leaf] = shared[id(parameter)]
            child._parameters[leaf] = shared[id(parameter)]
    try:
        yield known
    finally:
        for child, leaf, parameter in before:
            child._parameters[leaf] = parameter
