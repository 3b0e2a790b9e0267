"""Rotations are orthogonal, fast, and spread what stands out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gs_hadamard.rotations import rotation


@settings(deadline=None)
@given(st.sampled_from([2, 8, 12, 24, 64, 96, 176, 580, 1408]), st.sampled_from([None, 0, 7]))
def test_a_rotation_is_orthogonal_and_its_entries_alike(features: int, seed: int | None) -> None:
    whole = rotation(features, seed=seed).dense(features)
    assert np.allclose(whole @ whole.T, np.eye(features), atol=1e-6)
    magnitudes = np.abs(whole[whole != 0])
    assert np.allclose(magnitudes, magnitudes[0], atol=1e-6)


def test_one_outlier_is_spread_over_all_channels() -> None:
    """QuaRot, section 3: a token's largest channel shrinks by up to the root of the features."""
    x = np.zeros((1, 1408), np.float32)
    x[0, 3] = 1408**0.5
    assert np.allclose(np.abs(rotation(1408).apply(x)), 1, atol=1e-5)


def test_a_product_costs_its_factors() -> None:
    made = rotation(11008, seed=0)
    assert made.sizes == (344, 32)
    assert sum(made.sizes) < 11008 / 25
    assert rotation(4096).sizes == (64, 64)


def test_signs_follow_the_seed() -> None:
    x = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
    assert np.array_equal(rotation(64, seed=1).apply(x), rotation(64, seed=1).apply(x))
    assert not np.allclose(rotation(64, seed=1).apply(x), rotation(64, seed=2).apply(x))


def test_powers_of_two_are_sylvesters_which_engines_make_themselves() -> None:
    assert rotation(512).kind == "hadamard"
    assert rotation(1408, 128).kind == "hadamard"
    assert rotation(1408).kind == "rotation"
    assert rotation(512, seed=0).kind == "rotation"


def test_blocks_must_divide() -> None:
    assert rotation(1408, 44).block == 44
    with pytest.raises(ValueError, match="blocks of 100 do not divide 1408"):
        rotation(1408, 100)
