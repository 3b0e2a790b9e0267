"""Where a device has fast products in bfloat16, candidates are compared by those: what is chosen is as good."""

import numpy as np
import pytest
import torch

from gs_core import Fold, QuantizationArgs, numerics
from gs_core.arrays import to_numpy
from gs_core.products import rough_products
from gs_core.testing import HeldLayer

FEATURES, ROWS = 256, 96
GROUP = QuantizationArgs(format="int4", granularity="group", group_size=32)


@pytest.fixture(params=range(3))
def layer(request, correlated) -> tuple[np.ndarray, np.ndarray]:
    """A weight and activations as a model in bfloat16 computes them, some channels far larger than the others."""
    weight = np.random.default_rng(request.param).standard_t(5, (ROWS, FEATURES)).astype(np.float32)
    x = correlated(request.param, tokens=600, features=FEATURES, rank=40, outliers=4)
    return weight, torch.from_numpy(x).bfloat16().float().numpy()


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
def test_ranges_are_clipped_as_well(quantized, output_error, layer, symmetric):
    weight, x = layer
    args = GROUP.model_copy(update={"symmetric": symmetric})
    exact = quantized(weight, x, args)
    with rough_products("bfloat16"):
        found = quantized(*map(torch.from_numpy, layer), args)
    values = to_numpy(numerics.dequantize(found))
    assert (to_numpy(found.codes) != exact.codes).any()  # nothing would be shown if it made no difference
    assert output_error(weight, values, x) < 1.01 * output_error(weight, exact, x)


def test_the_same_scale_is_chosen(scaled, layer):
    weight, x = layer
    fold = Fold("norm", ("site",), FEATURES)
    exact = scaled(fold, [HeldLayer(weight, GROUP)], {"site": x})
    with rough_products("bfloat16"):
        found = scaled(fold, [HeldLayer(torch.from_numpy(weight), GROUP)], {"site": torch.from_numpy(x)})
    np.testing.assert_array_equal(to_numpy(found), exact)
