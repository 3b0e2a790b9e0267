"""What every algorithm owes the line."""

import pytest

from gs_core.testing import AlgorithmSuite


class TestGPTQ(AlgorithmSuite):
    @pytest.fixture
    def algorithm(self) -> str:
        return "gptq"
