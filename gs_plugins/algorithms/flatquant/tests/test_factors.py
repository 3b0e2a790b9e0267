"""Which two sizes a Kronecker pair has."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gs_flatquant import pair


@pytest.mark.parametrize(
    ("features", "expected"),
    [
        (4096, (64, 64)),
        (5120, (64, 80)),
        (11008, (86, 128)),
        (12288, (96, 128)),
        (14336, (112, 128)),
        (18944, (128, 148)),
        (28672, (128, 224)),
        (1408, (32, 44)),
    ],
)
def test_the_pairs_that_the_authors_use(features, expected):
    assert pair(features, 256) == expected


@pytest.mark.parametrize(("features", "expected"), [(18, (3, 6)), (1406, (37, 38)), (4098, (6, 683))])
def test_twice_an_odd_number_has_a_pair_too(features, expected):
    """The authors' search, for two squares, never ends there."""
    assert pair(features, 10_000) == expected


@given(st.integers(2, 3000))
def test_no_pair_is_closer(features):
    """Among those of equal parity, where there are any."""
    left, right = pair(features, features)
    assert left * right == features
    closer = [n for n in range(left + 1, math.isqrt(features) + 1) if features % n == 0]
    assert all((left + right) % 2 == 0 != (n + features // n) % 2 for n in closer)


@given(st.integers(2, 3000).filter(lambda n: n % 4 != 2))
def test_it_is_the_pair_that_engines_work_out(features):
    """vLLM-Ascend: the smallest ``a`` from the square root on whose square exceeds the features by a square ``b²``;
    then ``a - b`` and ``a + b``."""
    a = next(
        a
        for a in range(math.isqrt(features - 1) + 1, features + 1)
        if math.isqrt(a * a - features) ** 2 == a * a - features
    )
    b = math.isqrt(a * a - features)
    assert pair(features, features) == (a - b, a + b)


@given(st.integers(1, 2000).map(lambda n: 4 * n), st.integers(2, 300), st.sampled_from([1, 2]))
def test_limits_hold_and_it_always_ends(features, largest, parts):
    left, right = pair(features, largest, 1, parts)
    assert 1 < max(left, right) <= largest
    assert features // parts % (left * right) == 0


@pytest.mark.parametrize(
    ("features", "largest", "parts", "expected"),
    [
        (18944, 256, 1, (148, 128)),  # Qwen2.5-7B's down_proj: 148 is no multiple of 8
        (11008, 256, 2, (86, 64)),  # Llama-2-7B's on two devices
        (28672, 128, 1, (112, 128)),  # Llama-3-70B's, before CANN 8.5: half of the features in a block
    ],
)
def test_the_limits_of_an_ascend_kernel(features, largest, parts, expected):
    """aclnnFlatQuant: factors up to 256 (128 before CANN 8.5), the right one a multiple of 8."""
    assert pair(features, largest, 8, parts) == expected


@pytest.mark.parametrize(("features", "limits"), [(7, (256, 8)), (4096, (256, 1, 3)), (1009, (256, 1))])
def test_what_cannot_be_says_what_to_change(features, limits):
    with pytest.raises(ValueError, match=r"max_factor|devices"):
        pair(features, *limits)
