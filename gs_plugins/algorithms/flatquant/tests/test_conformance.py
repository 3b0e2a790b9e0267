"""What every algorithm owes the line."""

import pytest

from gs_core.testing import AlgorithmSuite
from gs_flatquant import FlatQuant, Options


class TestFlatQuant(AlgorithmSuite):
    namespaces = ("torch",)
    slack = 1.5
    """Clipping starts at 0.982 of the range, and these are few steps to take that back where there are many codes."""

    @pytest.fixture
    def algorithm(self) -> FlatQuant:
        return FlatQuant(Options(epochs=2, cali_bsz=2))
