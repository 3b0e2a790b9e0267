"""Decides while planning if the residual stream of a model can be rotated. Reads no weights.

The blocks run on stand-in parameters (``topology.thin_parameters``). ``topology.following`` replaces every product.
"""

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from gs_core.arrays import to_raw
from gs_core.comparing import equivalent
from gs_hf.block import HFBlock
from gs_hf.float64 import Float64
from gs_hf.running import Outputs, Runner, flatten
from gs_hf.topology import PROBE, following, thin_parameters
from gs_hf.watch import OnUse, Watch, unwatched
from gs_hf.writers import passing, writers

if TYPE_CHECKING:
    from gs_hf.model import HFModel


class _StandIn(HFBlock):
    """A block without weights, in float64."""

    def __init__(self, model: "HFModel", index: int, runner: Runner, parameters: dict[str, torch.Tensor]):
        super().__init__(model, index, None)
        self.parameters = {name: value for name, value in parameters.items() if name.startswith(self.prefix)}
        self._runner = runner

    def compute(
        self,
        tokens: Any,
        previous: Outputs | None,
        on_use: OnUse | None = None,
        on_cache: Any = None,
        gradient: bool = False,
    ) -> Outputs:
        def answer(use: Any, x: torch.Tensor, compute: Any, weight: torch.Tensor) -> torch.Tensor:
            return (on_use or unwatched)(use, x, lambda y: following(use, y, compute, weight), weight)

        with Float64(), Watch(self.parameters, answer, torch.float64):
            return self._runner.block(self.index, tokens, previous)


def why_not_rotated(model: "HFModel") -> str | None:
    """The reason why the residual stream cannot be rotated, or ``None`` if there is no reason.

    In a model that can be rotated, the outputs of layers are added to the stream unchanged. With sandwich norms
    (Gemma 3, OLMo 2) a norm with a weight for each channel is between the layer and the stream. One block of each kind
    is tried. The first block of the model is assumed to be like the others.
    """
    runner = Runner(model.module, list(model.blocks), "cpu")
    tried = set()
    with thin_parameters(model.module, vary=True) as parameters, torch.no_grad():
        with Watch(parameters, following):
            returned = runner.returns(PROBE)
        for index in range(1, len(model.blocks)):
            block = _StandIn(model, index, runner, parameters)
            kind = tuple((name.removeprefix(block.prefix), tuple(p.shape)) for name, p in block.parameters.items())
            if kind in tried:
                continue
            tried.add(kind)
            arrays = flatten(returned[index - 1])
            random = torch.Generator().manual_seed(0)
            stream = torch.randn(arrays["hidden"].shape, generator=random, dtype=torch.float64)
            previous = {name: to_raw(value) for name, value in (arrays | {"hidden": stream}).items()}
            prober: Any = SimpleNamespace(block=block, batch=(PROBE, previous))
            if not equivalent(stream, passing(prober, writers(prober))):
                return (
                    f"{block.name} changes the outputs of its layers before it adds them to the residual stream "
                    "(sandwich norms), so the stream cannot be rotated"
                )
    return None
