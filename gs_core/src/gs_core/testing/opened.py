"""A model that an adapter opened, its blocks, and what is asked of them: what tests of models have in common."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import pytest

from gs_core.arrays import RawTensor
from gs_core.interfaces import Adapter, Batch, Block, Model
from gs_core.storage import DerivedTensor, StoredTensor, Tensor
from gs_core.testing.suite import Suite, after, numpy

Case = tuple[Any, Adapter, np.ndarray]


class OpenedSuite(Suite):
    """Tests of a model that an adapter opened, whatever it was opened from.

    The fixture gives a source (a folder or a live object, small, since each test opens it; its weights large enough
    that every layer matters), the adapter, and token ids, int64 ``(batch, seq_len)``, that reach every site::

        class TestMine(AdapterSuite):
            @pytest.fixture
            def case(self, tmp_path):
                return write_my_model(tmp_path), MyAdapter(), np.arange(64).reshape(2, 32)
    """

    device: ClassVar[str] = "cpu"

    tolerance: ClassVar[float] = 1e-4
    """Relative error of float32 results that are equal but for the order of additions."""

    @pytest.fixture
    def case(self) -> Case:
        raise NotImplementedError("give the suite a fixture `case`: source, adapter, tokens")

    @pytest.fixture
    def model(self, case: Case) -> Model:
        source, adapter, _ = case
        return adapter.open(source, self.device)

    @pytest.fixture
    def tokens(self, case: Case) -> np.ndarray:
        return case[2]

    @pytest.fixture(params=["first", "last"])
    def position(self, request: pytest.FixtureRequest) -> str:
        """Which block a test looks at."""
        return request.param

    @pytest.fixture
    def batch(self, model: Model, tokens: np.ndarray, position: str) -> Batch:
        """What that block receives."""
        before = range(len(model.blocks) - 1) if position == "last" else range(0)
        batch: Batch = (tokens, None)
        for index in before:
            batch = after(model.block(index, batch), batch)
        return batch

    @pytest.fixture
    def block(self, model: Model, position: str, batch: Batch) -> Block:
        return model.block(0 if position == "first" else len(model.blocks) - 1, batch)

    def inputs(self, block: Block, batch: Batch) -> dict[str, np.ndarray]:
        """The activation at each site but those of caches, which may lie between a fold's producer and its sites."""
        seen: dict[str, np.ndarray] = {}
        block.run(*batch, lambda name, x: seen.update({name: numpy(x).copy()}))
        return {name: x for name, x in seen.items() if block.sites[name].layers}

    def losses(self, model: Model, tokens: np.ndarray) -> np.ndarray:
        return model.losses(tokens, self.last(model, tokens))

    def last(self, model: Model, tokens: np.ndarray) -> Mapping[str, RawTensor]:
        """What the last block returns."""
        batch: Batch = (tokens, None)
        for index in range(len(model.blocks)):
            batch = after(model.block(index, batch), batch)
        assert batch[1] is not None
        return batch[1]

    def everything(self, model: Model, tokens: np.ndarray, quantized: bool) -> Iterator[tuple[str, Tensor]]:
        """What is written besides packed layers, when all layers of the model are quantized or none is."""
        batch: Batch = (tokens, None)
        for index in range(len(model.blocks)):
            block = model.block(index, batch)
            batch = after(block, batch)
            yield from block.rest(set(block.layers) if quantized else ())
        yield from model.rest()


def contents(tensor: Tensor) -> tuple[str, tuple[int, ...], bytes]:
    raw = tensor.read() if isinstance(tensor, StoredTensor | DerivedTensor) else tensor
    return raw.dtype, raw.shape, raw.data.tobytes()
