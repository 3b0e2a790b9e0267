"""What every algorithm owes the line."""

import pytest

from gs_core.testing import AlgorithmSuite


class TestOutlierSuppressionPlus(AlgorithmSuite):
    @pytest.fixture
    def algorithm(self) -> str:
        return "osp"
