"""The conformance suite, and what this algorithm promises beyond it."""

import numpy as np
import pytest

from gs_core import QuantizationArgs, numerics
from gs_core.testing import AlgorithmSuite, HeldLayer
from gs_halfway import Halfway, Options

INT3 = QuantizationArgs(format="int3", granularity="group", group_size=32)


class TestHalfway(AlgorithmSuite):
    @pytest.fixture
    def algorithm(self):
        return "halfway"


@pytest.mark.parametrize("seed", range(5))
def test_no_group_is_rounded_worse_than_plainly(seed):
    layer = HeldLayer(np.random.default_rng(seed).standard_t(3, (64, 128)).astype(np.float32), INT3)
    errors = []
    for ratio in (0.0, 0.5):
        tensor = Halfway(Options(ratio=ratio)).round(layer)
        error = numerics.split(numerics.dequantize(tensor) - layer.weight(), layer.args)
        errors.append((error**2).sum(axis=-1))
    assert (errors[1] <= errors[0] * 1.00001).all()
    assert errors[1].sum() < 0.97 * errors[0].sum()


def test_none_of_the_way_is_plain_rounding():
    layer = HeldLayer(np.random.default_rng(0).standard_normal((4, 32)).astype(np.float32), INT3)
    plain = numerics.quantize_weight(layer.weight(), layer.args, "float32")
    assert np.array_equal(Halfway(Options(ratio=0)).round(layer).codes, plain.codes)
