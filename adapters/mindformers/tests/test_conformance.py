"""What every adapter owes the line: on MindFormers' own Llama, on all kinds of layers, and on a folder."""

from pathlib import Path

import numpy as np
import pytest

from gs_core.testing import AdapterSuite, LiveModelSuite
from gs_mindformers import MindFormers

pytestmark = pytest.mark.lane

TOKENS = np.random.default_rng(0).integers(3, 96, (4, 24))


class TestLlama(LiveModelSuite):
    @pytest.fixture
    def case(self, llama):
        return llama("bfloat16"), MindFormers(), TOKENS


class TestOtherLayers(LiveModelSuite):
    @pytest.fixture(params=["mixed", "fused", "mixture"])
    def case(self, request, network):
        return network(request.param), MindFormers(), TOKENS


class TestFolder(AdapterSuite):
    @pytest.fixture
    def case(self, mindspore, llama_folder) -> tuple[Path, MindFormers, np.ndarray]:
        return llama_folder, MindFormers(), TOKENS


class TestCaches(LiveModelSuite):
    """A Llama that was built to generate: keys and values go into a PagedAttentionMgr."""

    @pytest.fixture
    def case(self, llama):
        return llama("float32", use_past=True, block_size=16, num_blocks=8), MindFormers(), TOKENS
