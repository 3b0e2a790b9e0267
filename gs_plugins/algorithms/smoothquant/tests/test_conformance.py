"""What every algorithm owes the line."""

import pytest

from gs_core.testing import AlgorithmSuite
from gs_smoothquant import Options, SmoothQuant


class TestSmoothQuant(AlgorithmSuite):
    @pytest.fixture
    def algorithm(self) -> str:
        return "smoothquant"


class TestAutomatic(AlgorithmSuite):
    @pytest.fixture
    def algorithm(self) -> SmoothQuant:
        return SmoothQuant(Options(alpha="auto"))
