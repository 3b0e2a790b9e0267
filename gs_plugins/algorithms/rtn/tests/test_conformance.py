"""What every algorithm owes the line."""

import pytest

from gs_core.testing import AlgorithmSuite


class TestRoundToNearest(AlgorithmSuite):
    @pytest.fixture
    def algorithm(self) -> str:
        return "rtn"
