"""Sites without a table of models: run the model once on nothing, and watch which layers receive one tensor.

No weight is read: every parameter is one number seen through zero strides, and the products themselves are
answered with constants, so a model of any size is watched in seconds.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch

from gs_core import CheckpointError
from gs_hf.watch import Use, Watch, identity

PROBE_TOKENS = 8


@dataclass
class Topology:
    """What was seen: for each parameter used as a matrix, how, and which others got the same tensor."""

    uses: dict[str, Use] = field(default_factory=dict)
    """Parameter → how it is used, in the order of execution."""
    together: list[list[str]] = field(default_factory=list)
    """Parameters that were given one tensor, by groups in the order of execution."""


def observe(module: torch.nn.Module, device: str = "cpu") -> Topology:
    """Watch one forward of a module whose parameters may all be on the meta device."""
    topology = Topology()
    groups: dict[tuple, list[str]] = {}
    alive: list[torch.Tensor] = []

    def on_use(use: Use, x: torch.Tensor, compute, weight: torch.Tensor) -> torch.Tensor:
        out = weight.shape[-1] if use.transposed or weight.ndim > 2 else weight.shape[0]
        if use.parameter not in topology.uses:
            topology.uses[use.parameter] = use
            alive.append(x)  # a freed tensor's storage could come back as another one's
            groups.setdefault(identity(x), []).append(use.parameter)
        if weight.ndim > 2:
            return compute(x)
        # Not a constant along the features: a norm of constants would be zero, and zero can be divided by.
        return torch.linspace(-1, 1, out, dtype=x.dtype).expand(*x.shape[:-1], out).clone()

    with _thin_parameters(module) as parameters, Watch(parameters, on_use), torch.no_grad():
        tokens = torch.from_numpy(np.arange(PROBE_TOKENS, dtype=np.int64)[None] % 7 + 2)
        try:
            module(tokens, **({"use_cache": False} if hasattr(module, "config") else {}))
        except Exception as error:  # the model is a stranger's code
            raise CheckpointError(
                f"the model does not run on plain token ids, so its layers cannot be found: "
                f"{type(error).__name__}: {error}"
            ) from error
    topology.together = list(groups.values())
    return topology


@contextmanager
def _thin_parameters(module: torch.nn.Module) -> Iterator[dict[str, torch.Tensor]]:
    """Give every meta parameter a real value of one number; put the meta ones back afterwards."""
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
                shared[id(parameter)] = torch.nn.Parameter(value, requires_grad=False)
                known[f"{path}.{leaf}" if path else leaf] = shared[id(parameter)]
            child._parameters[leaf] = shared[id(parameter)]
    try:
        yield known
    finally:
        for child, leaf, parameter in before:
            child._parameters[leaf] = parameter
