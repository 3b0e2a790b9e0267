"""What every algorithm owes the line."""

import pytest

from gs_core.testing import AlgorithmSuite


class TestAWQ(AlgorithmSuite):
    @pytest.fixture
    def algorithm(self) -> str:
        return "awq"
