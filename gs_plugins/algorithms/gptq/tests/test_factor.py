"""``factor``: H = L D Lᵀ, where L feeds errors back and D says what an error in each feature costs."""

import numpy as np
import pytest

from gs_gptq import Factors, factor


def factors(found: Factors) -> tuple[np.ndarray, np.ndarray, float]:
    """L, D and the damping that was used."""
    return np.tril(found.matrix), found.variance, found.damping


@pytest.fixture
def hessian(correlated) -> np.ndarray:
    x = correlated(seed=0, tokens=200, features=40, rank=20)
    return x.T @ x / len(x)


@pytest.mark.parametrize("damping", [0.01, 0.1, 1.0])
def test_the_factors_multiply_to_the_damped_hessian(hessian, damping, median):
    damped = hessian + np.eye(40) * damping * median(np.diag(hessian))
    found = factor(hessian, damping)
    lower, d, used = factors(found)
    np.testing.assert_allclose(lower * d @ lower.T, damped, rtol=0, atol=1e-5 * np.abs(damped).max())
    assert used == damping
    np.testing.assert_allclose(found.diagonal, np.diag(damped), rtol=1e-6)


def test_above_the_diagonal_the_hessian_is_as_it_was(correlated):
    """More features than a panel of the factorisation has."""
    x = correlated(seed=3, tokens=400, features=300, rank=100)
    whole = x.T @ x / len(x)
    found = factor(whole.copy(), 0.01)
    np.testing.assert_array_equal(np.triu(found.matrix, k=1), np.triu(whole, k=1))
    lower, damped = np.tril(found.matrix), whole + np.diag(found.diagonal - np.diag(whole))
    np.testing.assert_allclose(lower * found.variance @ lower.T, damped, rtol=0, atol=1e-5 * damped.max())


def test_l_is_unit_lower_triangular_and_d_positive(hessian):
    lower, d, _ = factors(factor(hessian, 0.01))
    np.testing.assert_array_equal(lower, np.tril(lower))
    np.testing.assert_array_equal(np.diag(lower), np.ones(40))
    assert (d > 0).all()


def test_a_feature_that_was_always_zero_neither_gives_nor_takes_feedback(hessian):
    hessian[[3, 17], :] = hessian[:, [3, 17]] = 0
    lower, d, used = factors(factor(hessian, 0.01))
    for dead in (3, 17):
        np.testing.assert_array_equal(lower[dead, :], np.eye(40)[dead])
        np.testing.assert_array_equal(lower[:, dead], np.eye(40)[dead])
    assert np.isfinite(lower).all() and (d > 0).all() and used == 0.01


def test_a_hessian_of_nothing_but_zeros_feeds_nothing_back():
    lower, d, _ = factors(factor(np.zeros((4, 4), np.float32), 0.01))
    np.testing.assert_array_equal(lower, np.eye(4))
    np.testing.assert_array_equal(d, np.full(4, d[0]))
    assert d[0] > 0


@pytest.mark.parametrize(("asked", "used"), [(0.0, 0.1), (0.01, 0.1), (0.02, 0.2)])
def test_damping_grows_tenfold_until_the_matrix_is_positive(asked, used):
    """Eigenvalues 2.05 and -0.05: what rounding makes of a singular matrix, only more so."""
    indefinite = np.array([[1, 1.05], [1.05, 1]], np.float32)
    lower, d, found = factors(factor(indefinite.copy(), asked))
    assert found == pytest.approx(used)
    np.testing.assert_allclose(lower * d @ lower.T, indefinite + np.eye(2) * used, rtol=1e-5)


def test_channels_of_huge_activations_do_not_raise_the_damping_of_others(hessian):
    """In the mean they would: it would then drown what is known of all others."""
    scale = np.ones(40, np.float32)
    scale[:3] = 1000
    plain, huge = factor(hessian.copy(), 0.01), factor(hessian * scale[:, None] * scale, 0.01)
    added = huge.diagonal - np.diag(hessian) * scale**2
    np.testing.assert_allclose(added[3:], (plain.diagonal - np.diag(hessian))[3:], rtol=0.1)


def test_where_most_features_hardly_ever_speak_damping_still_reaches_the_mean():
    """Two that are the same but for rounding, among many that are almost zero."""
    nearly = np.diag([1, 1, *[1e-6] * 30]).astype(np.float32)
    nearly[0, 1] = nearly[1, 0] = 1.001
    lower, d, damping = factors(factor(nearly.copy(), 0.01))
    assert damping > 1 and (d > 0).all()
    np.testing.assert_allclose(lower * d @ lower.T, nearly + np.eye(32) * damping * 1e-6, atol=1e-5)


def test_fewer_tokens_than_features_are_enough(correlated):
    x = correlated(seed=1, tokens=5, features=64, rank=3)
    lower, d, _ = factors(factor(x.T @ x / len(x), 0.01))
    assert np.isfinite(lower).all() and (d > 0).all()


@pytest.mark.parametrize(
    "hopeless", [[[1, 3], [3, 1]], [[1, np.nan], [np.nan, 1]], [[np.inf, 0], [0, 1]]], ids=["indefinite", "nan", "inf"]
)
def test_what_no_damping_mends_is_an_error(hopeless):
    with pytest.raises(ValueError, match="Hessian cannot be factorised"):
        factor(np.array(hopeless, np.float32), 0.01)
