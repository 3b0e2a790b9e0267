"""The conformance suites, run on the toy adapter, the reference kernel and the kit's own plugins."""

import numpy as np
import pytest

from gs_core.kernels import Reference
from gs_core.testing import AdapterSuite, AlgorithmSuite, FormatSuite, KernelSuite, ToyAdapter, write_toy
from gs_core.testing.plugins import Levelling, Plain, Rounding
from gs_core.testing.suite import installed, maker


class TestRounding(AlgorithmSuite):
    namespaces = ("numpy", "array_api_strict")

    @pytest.fixture
    def algorithm(self):
        return Rounding


class TestLevelling(AlgorithmSuite):
    namespaces = ("numpy", "array_api_strict")

    @pytest.fixture
    def algorithm(self):
        return Levelling


class TestToyAdapter(AdapterSuite):
    @pytest.fixture(params=["float32", "bfloat16"])
    def case(self, request, tmp_path):
        sizes = {"hidden": 32, "intermediate": 48}
        folder = write_toy(tmp_path / "toy", dtype=request.param, shards=2, **sizes)
        return folder, ToyAdapter(), np.random.default_rng(0).integers(0, 256, (2, 24))


class TestToyAdapterInTorch(AdapterSuite):
    @pytest.fixture
    def case(self, tmp_path):
        if not installed(("torch",)):
            pytest.skip("needs torch")
        folder = write_toy(tmp_path / "toy", dtype="float32", hidden=32, intermediate=48)
        return folder, ToyAdapter(maker("torch")), np.random.default_rng(0).integers(0, 256, (2, 24))


class TestPlainFormat(FormatSuite):
    @pytest.fixture
    def checkpoint_format(self):
        return Plain


class TestReferenceKernel(KernelSuite):
    @pytest.fixture
    def kernel(self):
        return Reference
