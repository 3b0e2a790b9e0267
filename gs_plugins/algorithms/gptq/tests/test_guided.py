"""Rows that make up for each other's errors, as far as the model's predictions are concerned."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gs_core import CalibrationError, Data, Needs, QuantizationArgs, QuantizationScheme, numerics
from gs_core.arrays import transposed
from gs_core.guidance import LARGEST, LEAST
from gs_gptq import GPTQ, Options, factor, solve
from gs_gptq.grid import Grid
from gs_gptq.guided import couplings, refine_together
from gs_gptq.refine import refine

FEATURES, GROUP, ROWS = 24, 8, 40


def coupling(seed: int, rank: int, rows: int = ROWS) -> np.ndarray:
    """What outputs mean together whose gradients lie in a few directions, as ``couplings`` bounds it."""
    random = np.random.default_rng(seed)
    gradients = random.standard_normal((500, rank)) @ random.standard_normal((rank, rows))
    found = learned(gradients + 0.3 * random.standard_normal((500, rows)), (rows, rows))
    assert found is not None
    return found


def learned(gradients: np.ndarray, shape: tuple[int, int]) -> np.ndarray | None:
    """What is found of a layer of that shape whose output has these gradients."""
    halves = np.array_split(gradients.astype(np.float32), 2)

    def backward(half, on_gradient):
        on_gradient("layer", half)
        on_gradient("another block's", half)

    block = SimpleNamespace(backward=lambda tokens, previous, half, on_gradient: backward(half, on_gradient))
    layers = [SimpleNamespace(name="layer", shape=shape)]
    found = couplings(block, layers, Data(gradients=[((None, None), half) for half in halves]))
    assert set(found) <= {"layer"}
    return found.get("layer")


def start(seed: int, bits: int, correlated, symmetric: bool = True):
    """Weights, and what GPTQ makes of them before any sweep: codes, errors ``(features, rows)``, factors, groups, grid
    and the damped Hessian."""
    x = correlated(seed, tokens=200, features=FEATURES, rank=10)
    weight = np.random.default_rng(seed).standard_normal((ROWS, FEATURES)).astype(np.float32)
    args = QuantizationArgs(format=f"int{bits}", granularity="group", group_size=GROUP, symmetric=symmetric)
    hessian = x.T.astype(np.float64) @ x / len(x)
    factors = factor(hessian.astype(np.float32), 0.05)
    np.fill_diagonal(hessian, factors.diagonal)
    groups = (np.arange(FEATURES) // GROUP).tolist()
    grid = Grid(*numerics.weight_params(weight, args, "float32"), args)
    errors = transposed(weight)
    codes = transposed(solve(errors, factors, groups, grid, 16), grid.code_dtype)
    return weight, codes, errors, factors, groups, grid, hessian


def loss(errors: np.ndarray, together: np.ndarray, hessian: np.ndarray) -> float:
    """``tr(G E H Eᵀ)``."""
    e = errors.astype(np.float64)
    return float(((hessian @ e) * (e @ together)).sum())


# --- what outputs mean -------------------------------------------------------------------------------------------


def test_it_is_the_second_moment_of_the_gradients_within_bounds():
    gradients = np.random.default_rng(0).standard_normal((100, 6)) * [1, 1, 1, 1, 1, 2]
    total = gradients.T @ gradients
    values, vectors = np.linalg.eigh(total / np.diag(total).mean())
    values = np.clip(values, 0, LARGEST) + LEAST
    np.testing.assert_allclose(learned(gradients, (6, 9)), vectors * values @ vectors.T / values.mean(), atol=1e-5)


def test_no_direction_means_nothing_and_none_everything():
    one = np.outer(np.random.default_rng(0).standard_normal(100), np.ones(50))
    values = np.linalg.eigvalsh(learned(one, (50, 50)))
    assert values.mean() == pytest.approx(1, rel=1e-5)
    assert values.min() / values.max() == pytest.approx(LEAST / (LARGEST + LEAST), rel=1e-3)


def test_outputs_that_mean_nothing_are_left_out():
    assert learned(np.zeros((10, 4)), (4, 4)) is None


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_gradients_that_are_no_numbers_are_an_error(value):
    with pytest.raises(CalibrationError, match=r"layer: the gradient .* is not finite"):
        learned(np.full((10, 4), value), (4, 4))


def test_layers_with_more_outputs_than_inputs_are_left_out():
    assert learned(np.ones((10, 4)), (4, 3)) is None
    assert learned(np.ones((10, 4)), (4, 4)) is not None


# --- sweeps ------------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 10**6), bits=st.sampled_from([2, 3, 4]), rank=st.integers(1, 20), symmetric=st.booleans())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_no_sweep_makes_the_loss_larger(seed, bits, rank, symmetric, correlated):
    _, codes, errors, factors, groups, grid, hessian = start(seed, bits, correlated, symmetric)
    together = coupling(seed, rank)
    before = loss(errors, together, hessian)
    for _ in range(3):
        refine_together(codes, errors, factors, groups, grid, [(slice(0, ROWS), together)])
        after = loss(errors, together, hessian)
        assert after <= before * (1 + 1e-5)
        before = after


@pytest.mark.parametrize("symmetric", [True, False])
def test_codes_scales_and_errors_agree_afterwards(symmetric, correlated):
    weight, codes, errors, factors, groups, grid, _ = start(3, 4, correlated, symmetric)
    before = codes.copy()
    refine_together(codes, errors, factors, groups, grid, [(slice(0, ROWS), coupling(0, 4))])
    assert not np.array_equal(codes, before)
    scale, zero_point = grid.params()
    steps = codes.T.astype(np.float64) - (0 if zero_point is None else zero_point.astype(np.float64)[:, groups])
    np.testing.assert_allclose(errors.T, weight - steps * scale[:, groups], atol=1e-5)


@pytest.mark.parametrize(("rank", "gain"), [(2, 0.75), (10, 0.9)])
def test_rows_that_mean_something_together_gain_from_it(rank, gain, correlated):
    """Beside sweeps of each row on its own. The fewer directions matter, the more."""
    found = {}
    for name in ("alone", "together"):
        _, codes, errors, factors, groups, grid, hessian = start(1, 4, correlated)
        g = coupling(1, rank)
        for _ in range(4):
            if name == "alone":
                refine(codes, errors, factors, groups, grid)
            else:
                refine_together(codes, errors, factors, groups, grid, [(slice(0, ROWS), g)])
        found[name] = loss(errors, g, hessian)
    assert found["together"] < gain * found["alone"]


def test_rows_that_mean_nothing_to_each_other_are_each_on_its_own(correlated):
    results = []
    for rows in (None, slice(0, ROWS), slice(8, 20)):
        coupled = [] if rows is None else [(rows, np.eye(rows.stop - rows.start, dtype=np.float32))]
        _, codes, errors, factors, groups, grid, _ = start(2, 3, correlated)
        refine_together(codes, errors, factors, groups, grid, coupled)
        results.append((codes, grid.scale))
    for codes, scale in results[1:]:
        np.testing.assert_array_equal(codes, results[0][0])
        np.testing.assert_allclose(scale, results[0][1], rtol=1e-6)


# --- what it asks for --------------------------------------------------------------------------------------------


def test_it_asks_for_gradients_only_then():
    scheme = QuantizationScheme(weights=QuantizationArgs(format="int4", granularity="channel"))
    assert GPTQ(Options(guided=True)).needs(scheme) == Needs(data=True, gradient=True, float_stream=True, loss=True)
    assert not GPTQ(Options(asymmetric=True)).needs(scheme).loss
