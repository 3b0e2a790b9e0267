"""What every algorithm owes the line."""

import pytest

from gs_autoround import AutoRound, Options
from gs_core.testing import AlgorithmSuite


class TestAutoRound(AlgorithmSuite):
    namespaces = ("torch",)

    @pytest.fixture
    def algorithm(self) -> AutoRound:
        return AutoRound(Options(steps=20))


class TestDataFree(AlgorithmSuite):
    namespaces = ("torch",)

    @pytest.fixture
    def algorithm(self) -> AutoRound:
        return AutoRound(Options(steps=0, importance=False))
