"""``refine``: every code in turn as good as it can be while the others stand."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gs_core import QuantizationArgs, numerics
from gs_core.arrays import transposed
from gs_gptq import factor, solve
from gs_gptq.grid import Grid

FEATURES, GROUP = 24, 8


def solved(
    weight: np.ndarray,
    x: np.ndarray,
    args: QuantizationArgs,
    sweeps: int,
    block_size: int = 16,
    scattered: bool = False,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The errors that are left, the scale of each feature, both ``(rows, features)``, and the damped Hessian."""
    hessian = x.T.astype(np.float64) @ x / len(x)
    factors = factor(hessian.astype(np.float32), 0.01)
    np.fill_diagonal(hessian, factors.diagonal)
    count = FEATURES // (args.group_size or FEATURES)
    group = np.arange(FEATURES) % count if scattered else np.arange(FEATURES) * count // FEATURES
    grid = Grid(*numerics.weight_params(weight, args, "float32"), args)
    codes = solve(transposed(weight), factors, group.tolist(), grid, block_size, sweeps=sweeps)
    scale, zero_point = grid.params()
    wide = scale.astype(np.float64)[:, group]
    zero = 0 if zero_point is None else zero_point.astype(np.float64)[:, group]
    return weight - (codes.astype(np.float64) - zero) * wide, wide, hessian


def losses(*problem: Any, **options: Any) -> np.ndarray:
    """``e H eᵀ`` of each row in float64, with the damped H."""
    error, _, hessian = solved(*problem, **options)
    return np.einsum("ri,ij,rj->r", error, hessian, error)


def args(bits: int, symmetric: bool = True, granularity: str = "group") -> QuantizationArgs:
    size = GROUP if granularity == "group" else None
    return QuantizationArgs(format=f"int{bits}", granularity=granularity, group_size=size, symmetric=symmetric)


@given(
    seed=st.integers(0, 10**6),
    rank=st.integers(2, 20),
    outliers=st.integers(0, 2),
    bits=st.sampled_from([2, 3, 4, 8]),
    symmetric=st.booleans(),
    granularity=st.sampled_from(["group", "channel", "tensor"]),
    scattered=st.booleans(),
    block_size=st.sampled_from([1, 5, 16, 24]),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_no_sweep_makes_any_row_worse(
    seed, rank, outliers, bits, symmetric, granularity, scattered, block_size, correlated
):
    x = correlated(seed, tokens=100, features=FEATURES, rank=rank, outliers=outliers)
    weight = np.random.default_rng(seed).standard_normal((6, FEATURES)).astype(np.float32)
    numbers = args(bits, symmetric, granularity)
    found = [losses(weight, x, numbers, sweeps, block_size, scattered) for sweeps in range(4)]
    for before, after in pairwise(found):
        assert (after <= before * (1 + 1e-5)).all()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_in_the_end_no_single_code_can_be_changed_for_the_better(bits, correlated):
    """Every other code of every feature, tried one by one."""
    x = correlated(seed=5, tokens=100, features=FEATURES, rank=10)
    weight = np.random.default_rng(5).standard_normal((4, FEATURES)).astype(np.float32)
    numbers = args(bits)
    error, scale, hessian = solved(weight, x, numbers, sweeps=50)
    least = np.einsum("ri,ij,rj->r", error, hessian, error)
    for feature in range(FEATURES):
        for code in range(int(numbers.number.minimum), int(numbers.number.maximum) + 1):
            other = error.copy()
            other[:, feature] = weight[:, feature] - code * scale[:, feature]
            assert (np.einsum("ri,ij,rj->r", other, hessian, other) >= least * (1 - 1e-5)).all()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_in_the_end_no_scale_can_be_changed_for_the_better(bits, correlated):
    x = correlated(seed=7, tokens=100, features=FEATURES, rank=10)
    weight = np.random.default_rng(7).standard_normal((4, FEATURES)).astype(np.float32)
    error, _, hessian = solved(weight, x, args(bits), sweeps=50)
    least = np.einsum("ri,ij,rj->r", error, hessian, error)
    for start in range(0, FEATURES, GROUP):
        for factor_ in (0.99, 0.999, 1.001, 1.01):
            other = error.copy()
            group = slice(start, start + GROUP)
            other[:, group] += (1 - factor_) * (weight - error)[:, group]
            assert (np.einsum("ri,ij,rj->r", other, hessian, other) >= least * (1 - 1e-5)).all()


@pytest.mark.parametrize(("bits", "gain"), [(4, 0.98), (2, 0.95)])
def test_one_sweep_gains_what_it_costs(bits, gain, correlated):
    x = correlated(seed=6, tokens=200, features=FEATURES, rank=12)
    weight = np.random.default_rng(6).standard_normal((200, FEATURES)).astype(np.float32)
    first, refined = (losses(weight, x, args(bits), sweeps).sum() for sweeps in (0, 1))
    assert refined < gain * first
