"""What these tests share: a layer held in memory, and a block of one linear layer, which can be solved by trying."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from gs_core import Block, Data, Layer, QuantizationArgs, Site
from gs_core.arrays import to_raw
from gs_core.testing import HeldLayer


class OneProduct(Block):
    """``previous`` times the layer's weight."""

    name, index = "block", 0

    def __init__(self, layer: Layer):
        self.layers = {layer.name: layer}
        self.sites = {layer.site: Site(layer.site, layer.shape[1], (layer.name,))}

    def run(self, tokens: Any, previous: Any, on_site: Any = None, weights: Mapping[str, Any] | None = None) -> Any:
        x = torch.from_numpy(previous["hidden"].data.view(np.float32).reshape(previous["hidden"].shape))
        seen = None if on_site is None else on_site("site", x.flatten(0, 1))
        weight = (weights or {}).get("layer", self.layers["layer"].weight())
        return {"hidden": (x if seen is None else seen.reshape(x.shape)) @ weight.T}

    def rest(self, quantized: Any) -> Any:
        return iter(())


@pytest.fixture(scope="session")
def one_product() -> Callable[[torch.Tensor, QuantizationArgs, Sequence[torch.Tensor]], tuple[Block, Data]]:
    """``(weight, args, inputs)``: a block that multiplies by the weight, and its data: ``(batch, tokens, in)`` each."""

    def make(weight: torch.Tensor, args: QuantizationArgs, inputs: Sequence[torch.Tensor]) -> tuple[Block, Data]:
        block = OneProduct(HeldLayer(weight, args))
        batches = [(np.zeros(x.shape[:2], np.int64), {"hidden": to_raw(x)}) for x in inputs]
        targets = [{"hidden": to_raw(x @ weight.T)} for x in inputs]
        return block, Data(batches, batches, targets, [len(x) for x in inputs])

    return make
