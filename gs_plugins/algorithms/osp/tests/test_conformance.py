"""What every algorithm owes the line."""

import pytest

from gs_core.testing import AlgorithmSuite


class TestOutlierSuppressionPlus(AlgorithmSuite):
    cascades = True  # of 61 thresholds two can be level to a thousandth, which three codes of activations decide

    @pytest.fixture
    def algorithm(self) -> str:
        return "osp"
