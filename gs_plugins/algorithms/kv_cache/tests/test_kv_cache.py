"""Which sites are treated, and by which scales: the definition, number by number."""

import numpy as np
import pytest

from gs_core import QuantizationArgs, QuantizationScheme, Site
from gs_kv_cache import KVCache, Options

KEY = Site("attention.key", 4, (), "key", heads=2, dtype="float32")
FIRST = np.array([[1.0, -2.0, 0.0, 8.0], [0.5, 1.0, 3.0, -4.0]], np.float32)
SECOND = np.array([[-1.5, 0.0, -6.0, 2.0]], np.float32)
"""Two heads of two channels, in two batches. Largest magnitudes: 1.5, 2, 6, 8."""


def found(*batches, **args):
    scheme = QuantizationScheme(kv_cache=QuantizationArgs.model_validate(args))
    accumulator = KVCache().observe(site=KEY, scheme=scheme)
    for batch in batches:
        accumulator.update(batch)
    return accumulator.result()


@pytest.mark.parametrize(
    ("granularity", "largest"),
    [("tensor", [8.0]), ("head", [2.0, 8.0]), ("channel", [1.5, 2.0, 6.0, 8.0])],
)
@pytest.mark.parametrize(("number", "span"), [("int8", 127.5), ("int4", 7.5), ("fp8_e4m3", 448.0)])
def test_a_symmetric_scale_spans_the_largest_magnitude(granularity, largest, number, span):
    static = found(FIRST, SECOND, format=number, granularity=granularity)
    np.testing.assert_allclose(static.scale, np.array(largest) / span, rtol=1e-6)
    assert static.zero_point is None


def test_an_asymmetric_scale_spans_the_range_of_its_channel_and_zero():
    static = found(FIRST, SECOND, format="int8", granularity="channel", symmetric=False)
    low, high = np.array([-1.5, -2.0, -6.0, -4.0]), np.array([1.0, 1.0, 3.0, 8.0])
    np.testing.assert_allclose(static.scale, (high - low) / 255, rtol=1e-6)
    np.testing.assert_array_equal(static.zero_point, np.round(-128 - low / static.scale))


def test_mse_gives_up_an_outlier_for_all_the_others():
    random = np.random.default_rng(0)
    x = random.standard_normal((4096, 4)).astype(np.float32)
    x[7, 1] = 40.0
    wide, narrow = (found(x, format="int4", granularity="tensor", observer=name) for name in ("minmax", "mse"))
    assert wide.scale[0] == pytest.approx(40 / 7.5)
    assert narrow.scale[0] < wide.scale[0] / 2


def test_what_scales_itself_at_run_time_is_not_observed():
    args = QuantizationArgs(format="int8", granularity="token", dynamic=True)
    assert KVCache().observe(site=KEY, scheme=QuantizationScheme(kv_cache=args)) is None


def test_keys_are_those_that_engines_cache_unless_asked_otherwise():
    assert set(KVCache().kinds) == {"key", "value"}
    assert set(KVCache(Options(before_rope=True)).kinds) == {"unrotated_key", "value"}
