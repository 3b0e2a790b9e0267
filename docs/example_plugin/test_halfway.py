"""The conformance suite, and what this algorithm promises beyond it."""

import numpy as np
import pytest

from gs_core import QuantizationArgs, QuantizationScheme, numerics
from gs_core.interfaces import Layer, LayerInfo
from gs_core.testing import AlgorithmSuite
from gs_halfway import Halfway, Options


class TestHalfway(AlgorithmSuite):
    @pytest.fixture
    def algorithm(self):
        return "halfway"


class Fixed(Layer):
    """A layer with a weight of its own."""

    scheme = QuantizationScheme(weights=QuantizationArgs(format="int3", granularity="group", group_size=32))

    def __init__(self, weight):
        self.info = LayerInfo("fixed", 0, weight.shape, "fixed.input", "float32")
        self._weight = weight

    def weight(self):
        return self._weight.copy()

    def set_weight(self, weight): ...


@pytest.mark.parametrize("seed", range(5))
def test_no_group_is_rounded_worse_than_plainly(seed):
    layer = Fixed(np.random.default_rng(seed).standard_t(3, (64, 128)).astype(np.float32))
    errors = []
    for ratio in (0.0, 0.5):
        tensor = Halfway(Options(ratio=ratio)).round(layer)
        error = numerics.split(numerics.dequantize(tensor) - layer.weight(), layer.args)
        errors.append((error**2).sum(axis=-1))
    assert (errors[1] <= errors[0] * 1.00001).all()
    assert errors[1].sum() < 0.97 * errors[0].sum()


def test_none_of_the_way_is_plain_rounding():
    layer = Fixed(np.random.default_rng(0).standard_normal((4, 32)).astype(np.float32))
    plain = numerics.quantize_weight(layer.weight(), layer.args, "float32")
    assert np.array_equal(Halfway(Options(ratio=0)).round(layer).codes, plain.codes)
