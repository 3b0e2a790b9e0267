"""Statistics of what arrives at sites."""

import weakref
from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gs_core.interfaces import Fold
from gs_core.observers import SAMPLE_ROWS, Average, ChannelMaxima, Range, Sample, limits_of, static_input
from gs_schemas import QuantizationArgs

batches = st.lists(arrays(np.float32, (5, 3), elements=st.floats(-100, 100, width=32)), min_size=1, max_size=4)
INT8 = QuantizationArgs(format="int8", granularity="tensor")


@given(batches)
def test_a_range_is_that_of_all_batches_together(seen):
    span = Range()
    for x in seen:
        span.update(x)
    low, high = span.result()
    assert (low == np.concatenate(seen).min(axis=0)).all()
    assert (high == np.concatenate(seen).max(axis=0)).all()


@given(batches)
def test_maxima_are_over_all_batches(seen):
    largest = ChannelMaxima()
    for x in seen:
        largest.update(x)
    assert (largest.result() == np.abs(np.concatenate(seen)).max(axis=0)).all()


@given(batches, arrays(np.float32, 3, elements=st.floats(0.125, 8, width=32)))
def test_rescaling_is_as_if_the_data_had_been_scaled(seen, scale):
    for kind in (Range, ChannelMaxima, lambda: Sample()):
        before, after = kind(), kind()
        for x in seen:
            before.update(x)
            after.update(x / scale)
        assert before.rescale(scale) is True
        assert np.array_equal(before.result(), after.result())


def test_a_sample_is_of_all_rows_alike():
    """Rows at equal distances would be the same few tokens of every sequence."""
    sample = Sample()
    for batch in range(4):
        rows = np.arange(1000, dtype=np.float32) + 1000 * batch
        sample.update(rows[:, None])
    result = sample.result()[:, 0]
    assert len(result) == SAMPLE_ROWS and (np.diff(result) > 0).all()
    assert np.unique(result // 1000, return_counts=True)[1].min() > SAMPLE_ROWS // 8
    assert len(np.unique(result % 128)) > 100, "of sequences of 128 tokens nearly every position"


@given(st.lists(st.integers(0, 400), min_size=1, max_size=12), st.integers(1, 300))
def test_a_sample_is_the_same_in_whatever_batches(sizes, size):
    x = np.arange(sum(sizes) + 1, dtype=np.float32)[:, None]
    whole, parts = Sample(size), Sample(size)
    whole.update(x)
    for start, stop in pairwise(np.cumsum([0, *sizes, 1])):
        parts.update(x[start:stop])
    assert np.array_equal(whole.result(), parts.result()) and len(whole.result()) == min(len(x), size)


def test_a_sample_of_little_is_all_of_it():
    sample = Sample()
    x = np.random.default_rng(0).standard_normal((10, 3))
    sample.update(x)
    assert (sample.result() == x).all()


def test_a_sample_keeps_no_activation_alive():
    sample, x = Sample(), np.ones((1000, 4), np.float32)
    whole = weakref.ref(x)
    sample.update(x)
    del x
    assert whole() is None


def static(x, args, dtype="float32"):
    found = limits_of(args)
    found.update(x)
    return static_input(found, x, args, dtype)


def test_a_static_scale_covers_the_range_over_channels():
    x = np.array([[-1.0, -3.0], [2.0, 255.0]], np.float32)
    found = static(x, INT8, "bfloat16")
    assert found.scale.tolist() == [2.0]
    assert found.zero_point is None
    asymmetric = static(x, INT8.model_copy(update={"symmetric": False}))
    assert (asymmetric.scale * 255).round().tolist() == [258]
    assert asymmetric.zero_point.tolist() == [-128 + 3]


def test_a_static_scale_by_mse_gives_up_a_lone_outlier():
    x = np.random.default_rng(0).standard_normal((256, 64)).astype(np.float32)
    x[3, 7] = 30.0
    args = QuantizationArgs(format="int4", granularity="tensor")
    kept = static(x, args).scale
    clipped = static(x, args.model_copy(update={"observer": "mse"})).scale
    assert kept == 4.0
    assert 0.2 * kept <= clipped < 0.5 * kept


def test_the_average_of_extremes_hardly_sees_a_rare_outlier():
    average = Average()
    for batch in range(10):
        average.update(np.array([[-1.0, 1.0 if batch else 101.0]]))
    assert average.limits(INT8, "float32") == (-1.0, 11.0)
    assert average.rescale(np.ones(2)) is False


def test_a_fold_takes_the_largest_behind_each_channel():
    shared = Fold("v", ("o",), 2, np.array([0, 0, 1, 1]))
    assert shared.expand(np.array([5.0, 7.0])).tolist() == [5, 5, 7, 7]
    assert shared.reduce_max([np.array([1.0, 2, 3, 4]), np.array([0.0, 9, 0, 0])]).tolist() == [9, 4]
    interleaved = Fold("v", ("o",), 2, np.array([0, 1, 0, 1]))
    assert interleaved.reduce_max([np.array([1.0, 2, 3, 4])]).tolist() == [3, 4]
    one_to_one = Fold("norm", ("q",), 2)
    assert one_to_one.expand(np.array([5.0, 7.0])).tolist() == [5, 7]
    assert one_to_one.reduce_max([np.array([1.0, 5]), np.array([2.0, 4])]).tolist() == [2, 5]
