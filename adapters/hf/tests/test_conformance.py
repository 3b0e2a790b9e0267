"""What every adapter owes the line, on an ordinary decoder, one with parallel blocks and biases, and a mixture."""

import numpy as np
import pytest

from gs_core.testing import AdapterSuite, LiveModelSuite
from gs_hf import HuggingFace

TOKENS = np.random.default_rng(0).integers(3, 96, (4, 24))


class TestFolder(AdapterSuite):
    @pytest.fixture(params=["llama", "phi", "mixtral"])
    def case(self, request, saved):
        dtype = "bfloat16" if request.param == "llama" else "float32"
        return saved(request.param, dtype, num_hidden_layers=2), HuggingFace(), TOKENS


class TestLiveModel(LiveModelSuite):
    @pytest.fixture
    def case(self, build):
        return build("llama", num_hidden_layers=2), HuggingFace(), TOKENS
