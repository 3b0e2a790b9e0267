"""How far a block is from the float block, by what errors cost the model's predictions."""

import numpy as np
import pytest

from gs_core import CalibrationError, Data, arrays
from gs_core.guidance import LARGEST, LEAST, Distance
from gs_core.testing.suite import installed, maker

CHANNELS = 6
LIBRARIES = [pytest.param(maker(name), id=name) for name in installed(("numpy", "torch"))]


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def given(targets, gradients):
    """The data of a block that returned ``targets`` and got ``gradients``, ``(batches, samples, tokens, CHANNELS)``."""
    raw = [[{"hidden": arrays.to_raw(x)} for x in each] for each in (targets, gradients)]
    return Data(targets=raw[0], gradients=[(None, gradient) for gradient in raw[1]])


@pytest.fixture
def targets():
    """Channels of very different sizes."""
    return normal(0, 3, 2, 40, CHANNELS) * np.asarray([1, 1, 1, 2, 0.1, 100], np.float32)


@pytest.fixture
def gradients():
    """They favour one direction, and hardly know another."""
    return normal(1, 3, 2, 40, CHANNELS) @ np.diag(np.asarray([1, 5, 1, 0.01, 1, 0.01], np.float32))


def by_hand(targets, gradients, found, wanted):
    """The formula, in float64."""
    targets, gradients = (x.astype(np.float64).reshape(-1, CHANNELS) for x in (targets, gradients))
    size = np.sqrt((targets**2).mean(0))
    total = (gradients * size).T @ (gradients * size)
    values, vectors = np.linalg.eigh(total / np.diag(total).mean())
    values = np.clip(values, 0, LARGEST) + LEAST
    together = vectors * (values / values.mean()) @ vectors.T
    error = (found - wanted) / size
    return (np.einsum("...i,ij,...j", error, together, error) / ((wanted / size) ** 2).sum(-1)).mean()


@pytest.mark.parametrize("library", LIBRARIES)
def test_unguided_all_errors_of_a_token_cost_the_same(library, targets):
    wanted, found = targets[0], targets[0] + normal(2, *targets[0].shape)
    expected = (((found - wanted) ** 2).sum(-1) / (wanted**2).sum(-1)).mean()
    assert float(Distance()(library(found), library(wanted))) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("library", LIBRARIES)
def test_guided_they_cost_what_gradients_say_within_bounds(library, targets, gradients):
    wanted, found = targets[0], targets[0] + 0.1 * normal(2, *targets[0].shape)
    distance = Distance.guided("block", given(targets, gradients), library(wanted))
    assert arrays.namespace(distance.root) is arrays.namespace(library(wanted))
    expected = by_hand(targets, gradients, found, wanted)
    assert float(distance(library(found), library(wanted))) == pytest.approx(expected, rel=1e-4)
    assert abs(expected / float(Distance()(found, wanted)) - 1) > 0.5, "it makes a difference here"


def test_a_channel_may_have_any_unit(targets, gradients):
    """What is larger by a factor has a gradient that is smaller by it, and an error costs what it did."""
    wanted, found = targets[0], targets[0] * (1 + 0.1 * normal(2, *targets[0].shape))
    units = np.asarray([1, 1, 300, 1, 0.1, 1], np.float32)
    one = Distance.guided("block", given(targets, gradients), wanted)(found, wanted)
    other = Distance.guided("block", given(targets * units, gradients / units), wanted)(found * units, wanted * units)
    assert float(other) == pytest.approx(float(one), rel=1e-3)


def test_a_channel_that_is_always_zero_costs_no_infinity(targets, gradients):
    targets[..., 2] = 0
    distance = Distance.guided("block", given(targets, gradients), targets[0])
    assert np.isfinite(distance(targets[0] + 1e-3, targets[0]))


@pytest.mark.parametrize("none", [[], np.zeros((3, 2, 40, CHANNELS), np.float32), normal(0, 1, 1, 5, CHANNELS)])
def test_without_gradients_that_know_something_all_errors_cost_the_same(targets, none):
    """None, zeros, or those of fewer tokens than channels."""
    assert Distance.guided("block", given(targets, none), targets[0]) == Distance()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_gradient_that_is_no_number_is_an_error_that_names_the_block(targets, gradients, value):
    gradients[1, 0, 3, 2] = value
    with pytest.raises(CalibrationError, match=r"block: the gradient .* is not finite"):
        Distance.guided("block", given(targets, gradients), targets[0])
