"""The numerics give the same numbers in any array library, using nothing but the standard's words."""

import array_api_strict
import numpy as np
import pytest

from gs_core import numerics
from gs_core.comparing import channel_error, relative_error
from gs_core.interfaces import Fold
from gs_core.observers import Sample, limits_of, static_input
from gs_core.testing.suite import INPUTS, WEIGHTS

X = np.random.default_rng(0).standard_normal((64, 96)).astype(np.float32)


def strict(array):
    return array_api_strict.asarray(array)


def same(one, other):
    """Whether NumPy's answer and the strict library's are one."""
    if one is None or other is None:
        return one is other
    assert isinstance(other, type(strict(X)))
    return np.array_equal(one, np.asarray(other))


@pytest.mark.parametrize("args", WEIGHTS.values(), ids=WEIGHTS)
def test_weights(args):
    one, other = (numerics.quantize_weight(weight, args, "float32") for weight in (X, strict(X)))
    assert same(one.codes, other.codes)
    assert same(one.scale, other.scale)
    assert same(one.zero_point, other.zero_point)
    assert same(numerics.dequantize(one), numerics.dequantize(other))


def test_importance():
    args = WEIGHTS["int4 group mse"]
    importance = np.abs(X[0])
    one, other = (numerics.weight_params(make(X), args, "float32", make(importance)) for make in (np.asarray, strict))
    assert same(one[0], other[0])


@pytest.mark.parametrize("args", INPUTS.values(), ids=INPUTS)
def test_activations(args):
    def static(make):
        if args.dynamic:
            return ()
        zero_point = None if args.symmetric else make(np.array([3.0], np.float32))
        return make(np.array([0.02], np.float32)), zero_point

    one, other = (numerics.fake_quantize(make(X), args, *static(make)) for make in (np.asarray, strict))
    assert same(one, other)


@pytest.mark.parametrize("observer", ["minmax", "average"])
@pytest.mark.parametrize("args", [INPUTS["static tensor"], INPUTS["static tensor asym"]])
def test_observers(args, observer):
    found, args = [], args.model_copy(update={"observer": observer})
    for make in (np.asarray, strict):
        limits, sample = limits_of(args), Sample()
        for accumulator in (limits, sample):
            accumulator.update(make(X))
            accumulator.update(make(2 * X))
            accumulator.rescale(make(np.linspace(1, 2, 96, dtype=np.float32)))
        found.append(static_input(limits, sample.result(), args, "float32"))
    assert same(found[0].scale, found[1].scale)
    assert same(found[0].zero_point, found[1].zero_point)


def test_folds():
    fold = Fold("v", ("o",), 48, np.repeat(np.arange(48), 2))
    assert same(fold.expand(X[0, :48]), fold.expand(strict(X[0, :48])))
    assert same(fold.reduce_max([X[0], X[1]]), fold.reduce_max([strict(X[0]), strict(X[1])]))


def test_errors():
    for measure in (relative_error, channel_error):
        assert measure(X, X + 1) == measure(strict(X), strict(X + 1))
