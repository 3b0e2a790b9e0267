"""Ranges read off a histogram, against what a search over the values themselves finds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gs_core import numerics
from gs_core.histogram import BINS, Histogram, divergence
from gs_schemas import QuantizationArgs

batches = st.lists(arrays(np.float32, (5, 3), elements=st.floats(-1e4, 1e4, width=32)), min_size=1, max_size=4)
CASES = [(bits, symmetric) for bits in (4, 8) for symmetric in (True, False)]


def args(bits=8, symmetric=True, **more):
    return QuantizationArgs(format=f"int{bits}", granularity="tensor", symmetric=symmetric, **more)


def seen(*arrays):
    histogram = Histogram()
    for x in arrays:
        histogram.update(x)
    return histogram


def skewed(seed, rows=4000):
    return np.random.default_rng(seed).gumbel(1.0, 2.0, (rows, 8)).astype(np.float32)


@settings(deadline=None)
@given(batches)
def test_every_value_is_counted_once_in_a_bin_that_holds_it(given):
    histogram, values = seen(*given), np.concatenate(given).reshape(-1)
    assert histogram.counts.sum() == len(values)
    assert (histogram.low, histogram.high) == (values.min(), values.max())
    if histogram.limit:
        edges = np.linspace(-histogram.limit, histogram.limit, BINS + 1)
        edges[-1] += 1  # the last bin holds its own end
        assert (histogram.counts == np.histogram(values.astype(np.float64), edges)[0]).all()


@settings(deadline=None)
@given(batches)
def test_the_order_of_the_batches_does_not_matter(given):
    one, other = seen(*given), seen(*given[::-1])
    assert one.limit == other.limit
    assert (one.counts == other.counts).all()


@pytest.mark.parametrize("percent", [90.0, 99.0, 99.9, 100.0])
def test_a_percentile_is_that_of_the_sorted_values(percent):
    x = skewed(0)
    histogram, width = seen(x[:1000], x[1000:]), 2 * seen(x).limit / BINS
    low, high = histogram.percentile(percent, symmetric=True)
    assert low == -high
    assert between(high, np.abs(x), percent, width)
    low, high = histogram.percentile(percent, symmetric=False)
    tail = (100 - percent) / 2
    assert between(low, x, tail, width)
    assert between(high, x, 100 - tail, width)


def between(found, x, percent, width):
    """Whether it lies between the two sorted values around a percentile, within a bin's width."""
    low, high = (np.percentile(x, percent, method=method) for method in ("lower", "higher"))
    return low - width <= found <= high + width


def test_a_hundred_percent_is_everything():
    x = skewed(1)
    assert seen(x).limits(args(observer="percentile", percentile=100), "float32") == (
        -np.abs(x).max(),
        np.abs(x).max(),
    )


def squared_error(x, low, high, numbers):
    ends = (np.asarray([end], np.float32) for end in (low, high))
    scale, zero_point = numerics.scale_from_range(*ends, numbers, "float32")
    rounded = numerics.decode(numerics.encode(x, scale, zero_point, numbers), scale, zero_point)
    return float(((x.astype(np.float64) - rounded) ** 2).sum())


@pytest.mark.parametrize(("bits", "symmetric"), CASES)
def test_no_range_has_a_much_smaller_squared_error(bits, symmetric):
    """Against every five-hundredth of the range, on the values themselves."""
    numbers = args(bits, symmetric, observer="mse")
    x = skewed(bits)
    found = squared_error(x, *seen(x).limits(numbers, "float32"), numbers)
    best = min(squared_error(x, x.min() * f, x.max() * f, numbers) for f in np.linspace(0.2, 1, 401))
    assert found <= 1.02 * best


def brute_divergence(x, fraction, numbers, bins):
    """The textbook's loop over bins and codes, for the histogram that ``bins`` cuts out."""
    counts, edges = np.histogram(x, bins)
    low, high = x.min() * fraction, x.max() * fraction
    ends = (np.asarray([end], np.float32) for end in (low, high))
    scale, zero_point = numerics.scale_from_range(*ends, numbers, "float32")
    centres = ((edges[1:] + edges[:-1]) / 2).clip(x.min(), x.max())
    p, groups = {}, {}
    for centre, count in zip(centres, counts, strict=True):
        if count:
            inside = low <= centre <= high
            if inside:
                code = float(numerics.encode(np.float32([centre]), scale, zero_point, numbers)[0])
                groups.setdefault(code, []).append(centre)
                p[centre] = count
    q = {c: np.mean([p[m] for m in members]) for members in groups.values() for c in members}
    first, last = min(p), max(p)
    for centre, count in zip(centres, counts, strict=True):
        if count and centre < low:
            p[first] += count
        if count and centre > high:
            p[last] += count
    whole_p, whole_q = sum(p.values()), sum(q.values())
    return sum(p[c] / whole_p * np.log((p[c] / whole_p) / (q[c] / whole_q)) for c in p)


@pytest.mark.parametrize(("bits", "symmetric"), CASES)
@pytest.mark.parametrize("fraction", [0.3, 0.71, 1.0])
def test_the_divergence_is_the_textbook_s(bits, symmetric, fraction):
    numbers, x = args(bits, symmetric), skewed(2, 500).astype(np.float64)
    bins = np.linspace(-32, 32, 301)
    counts, edges = np.histogram(x, bins)
    centres = ((edges[1:] + edges[:-1]) / 2).clip(x.min(), x.max())[counts > 0]
    found = divergence(centres, counts[counts > 0].astype(float), (x.min(), x.max()), fraction, numbers, "float32")
    assert found == pytest.approx(brute_divergence(x, fraction, numbers, bins), rel=1e-9)


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_least_divergence_clips_a_long_thin_tail(symmetric):
    x = np.random.default_rng(0).standard_normal((4000, 16)).astype(np.float32)
    x[0, 0] = 60.0
    numbers = args(4, symmetric, observer="divergence")
    low, high = seen(x).limits(numbers, "float32")
    assert 2 < high < 30
    assert squared_error(x, low, high, numbers) < squared_error(x, x.min(), x.max(), numbers)


@pytest.mark.parametrize("observer", ["mse", "divergence"])
def test_a_site_of_zeros_has_no_range(observer):
    assert seen(np.zeros((4, 4), np.float32)).limits(args(observer=observer), "float32") == (0, 0)
