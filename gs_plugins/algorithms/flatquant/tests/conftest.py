"""What these tests share: a toy block in torch, whose up_proj makes outliers, and its calibration data."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gs_core import Data
from gs_core.arrays import to_raw
from gs_core.testing import ToyAdapter, write_toy
from gs_schemas import QuantizationArgs, QuantizationScheme

W4A4 = QuantizationScheme(
    weights=QuantizationArgs(format="int4", granularity="channel"),
    inputs=QuantizationArgs(format="int4", granularity="token", dynamic=True),
)


@pytest.fixture
def toy(tmp_path: Path) -> Any:
    """``(block, layers, observed, data)``: a fresh block each time it is called, the same every time."""
    folder = write_toy(tmp_path / "toy", dtype="float32", blocks=1, hidden=64, intermediate=96)
    random = np.random.default_rng(0)
    tokens = [random.integers(0, 256, (4, 24)) for _ in range(2)]

    def make() -> Any:
        block = ToyAdapter(torch.asarray).open(folder, "cpu").block(0, (tokens[0], None))
        up = f"{block.name}.up.weight"
        weight = block.read(up).copy()
        weight[::16] *= 30
        block.write(up, weight)
        layers = list(block.layers.values())
        for layer in layers:
            layer.scheme = W4A4
        observed: dict[str, torch.Tensor] = {}

        def see(name: str, x: torch.Tensor) -> None:
            here = x.abs().amax(0)
            observed[name] = torch.maximum(observed.get(name, here), here)

        batches = [(t, None) for t in tokens]
        targets = [{"hidden": to_raw(block.run(*batch, see)["hidden"])} for batch in batches]
        return block, layers, observed, replace(Data(batches, batches, targets, [4, 4]))

    return make
