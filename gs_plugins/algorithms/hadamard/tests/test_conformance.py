"""What every algorithm owes the line."""

import pytest

from gs_core.testing import AlgorithmSuite
from gs_hadamard import Hadamard
from gs_hadamard.plugin import Options


class TestHadamard(AlgorithmSuite):
    slack = 1.25  # the weights of the toy are normal numbers: nothing stands out of them that could be spread

    @pytest.fixture
    def algorithm(self) -> Hadamard:
        return Hadamard(Options(r3=True, r4=True))
