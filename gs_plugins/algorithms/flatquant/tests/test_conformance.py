"""What every algorithm owes the line."""

import pytest

from gs_core.testing import AlgorithmSuite
from gs_flatquant import FlatQuant, Options


class TestFlatQuant(AlgorithmSuite):
    namespaces = ("torch",)

    @pytest.fixture
    def algorithm(self) -> FlatQuant:
        return FlatQuant(Options(epochs=2, cali_bsz=2))
