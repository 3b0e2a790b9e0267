"""What every algorithm owes the line."""

import pytest

from gs_core.testing import AlgorithmSuite
from gs_gptq import GPTQ, Options


class TestGPTQ(AlgorithmSuite):
    @pytest.fixture
    def algorithm(self) -> str:
        return "gptq"


class TestAsymmetricGPTQ(AlgorithmSuite):
    cascades = True

    @pytest.fixture
    def algorithm(self) -> GPTQ:
        return GPTQ(Options(asymmetric=True))


class TestGuidedGPTQ(AlgorithmSuite):
    namespaces = ("torch",)
    cascades = True

    @pytest.fixture
    def algorithm(self) -> GPTQ:
        return GPTQ(Options(asymmetric=True, guided=True))
