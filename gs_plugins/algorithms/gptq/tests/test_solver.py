"""``solve`` is the paper's algorithm: the same codes as its column loop, in whatever blocks it works."""

import numpy as np
import pytest

from gs_core import QuantizationArgs, numerics
from gs_core.arrays import transposed
from gs_gptq import factor, solve
from gs_gptq.grid import Grid

ROWS, FEATURES, GROUP = 12, 48, 16
# A number this close to the middle between two codes could go either way in float32. None of the problems has one.
UNDECIDED = 1e-4


@pytest.fixture
def problem(correlated):
    weight = np.random.default_rng(0).standard_normal((ROWS, FEATURES)).astype(np.float32)
    x = correlated(seed=2, tokens=100, features=FEATURES, rank=30)
    return weight, x.T @ x / len(x)


def int4(granularity: str, symmetric: bool = True) -> QuantizationArgs:
    size = GROUP if granularity == "group" else None
    return QuantizationArgs(format="int4", granularity=granularity, group_size=size, symmetric=symmetric)


def fitted(weight: np.ndarray, args: QuantizationArgs) -> tuple[np.ndarray, np.ndarray | None]:
    """Scales that cover every value. Symmetric ones a little wider than the product's, whose widest value lies right
    between two codes."""
    scale, zero_point = numerics.weight_params(weight, args, "float32")
    return scale * np.float32(7.5 / 7 if args.symmetric else 1), zero_point


def solved(weight: np.ndarray, hessian: np.ndarray, grid: Grid, block_size: int, choose=None) -> np.ndarray:
    """``solve`` takes features from the last to the first: here the first is the first to be taken."""
    factors = factor(hessian[::-1, ::-1].copy(), 0.01)
    groups = [i * len(grid.scale) // FEATURES for i in reversed(range(FEATURES))]
    return solve(transposed(weight[:, ::-1]), factors, groups, grid, block_size, choose)[:, ::-1]


def per_column(array: np.ndarray | None, size: int) -> np.ndarray:
    """``(rows, groups)`` to ``(rows, features)``; no zero point is a zero point of zero."""
    return np.repeat(array.astype(np.float64), size, axis=1) if array is not None else np.zeros((ROWS, FEATURES))


def forwards(weight: np.ndarray, hessian: np.ndarray, groups: list[int], *rest) -> np.ndarray:
    """``solve`` on the features back to front, for it takes the last one first and the textbook the first."""
    factors = factor(np.ascontiguousarray(hessian[::-1, ::-1]), 0.01)
    return solve(transposed(weight[:, ::-1]), factors, groups[::-1], *rest)[:, ::-1]


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("granularity", ["channel", "group"])
def test_fixed_scales_give_the_codes_of_the_textbook(problem, textbook, median, granularity, symmetric):
    weight, hessian = problem
    args = int4(granularity, symmetric)
    size = args.group_size or FEATURES
    scale, zero_point = fitted(weight, args)
    scales, zeros = per_column(scale, size), per_column(zero_point, size)
    expected, margin = textbook(
        weight, hessian, 0.01 * median(np.diag(hessian)), args, lambda i, _: (scales[:, i], zeros[:, i])
    )
    assert margin > UNDECIDED

    codes = forwards(weight, hessian, [i // size for i in range(FEATURES)], Grid(scale, zero_point, args), 16)
    np.testing.assert_array_equal(codes, expected)
    assert not np.array_equal(codes, numerics.quantize_with(weight, scale, zero_point, args).codes)


@pytest.mark.parametrize("block_size", [1, 16, 48])
@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "asymmetric"])
def test_scales_that_follow_the_feedback_give_the_codes_of_the_textbook(
    problem, textbook, median, symmetric, block_size
):
    """Each group's scale is chosen from its weights as the groups before have left them."""
    weight, hessian = problem
    args, alone = int4("group", symmetric), int4("channel", symmetric)
    scales, zeros = np.zeros((ROWS, FEATURES)), np.zeros((ROWS, FEATURES))

    def grid(column: int, left: np.ndarray):
        if column % GROUP == 0:
            group = slice(column, column + GROUP)
            scale, zero_point = fitted(left[:, group].astype(np.float32), alone)
            scales[:, group], zeros[:, group] = scale, 0 if zero_point is None else zero_point
        return scales[:, column], zeros[:, column]

    expected, margin = textbook(weight, hessian, 0.01 * median(np.diag(hessian)), args, grid)
    assert margin > UNDECIDED

    chosen = Grid(*fitted(weight, args), args)
    groups = [i // GROUP for i in range(FEATURES)]
    codes = forwards(weight, hessian, groups, chosen, block_size, lambda left, _: fitted(left, alone))
    np.testing.assert_array_equal(codes, expected)
    np.testing.assert_allclose(chosen.scale, scales[:, ::GROUP].T, rtol=1e-5)
    if not symmetric:
        np.testing.assert_array_equal(chosen.zero_point, zeros[:, ::GROUP].T)


@pytest.mark.parametrize("block_size", [1, 5, 16, 47, 1000])
def test_the_block_size_changes_nothing(problem, block_size):
    weight, hessian = problem
    args = int4("group")
    groups = [i // GROUP for i in range(FEATURES)]

    def codes(size: int) -> np.ndarray:
        return forwards(weight, hessian, groups, Grid(*fitted(weight, args), args), size)

    np.testing.assert_array_equal(codes(block_size), codes(FEATURES))


def test_without_correlation_it_is_rounding_to_nearest(problem):
    """A diagonal Hessian has nothing to feed back."""
    weight, _ = problem
    args = int4("group")
    scale, zero_point = fitted(weight, args)
    codes = solved(weight, np.eye(FEATURES, dtype=np.float32), Grid(scale, zero_point, args), 16)
    np.testing.assert_array_equal(codes, numerics.quantize_with(weight, scale, zero_point, args).codes)


def test_features_lie_row_by_row_so_that_a_step_reads_neighbours():
    scale = Grid(np.ones((3, 5), np.float32), None, int4("channel")).scale
    assert scale.strides[0] > scale.strides[1]
