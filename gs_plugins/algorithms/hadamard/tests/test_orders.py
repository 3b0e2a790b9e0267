"""Paley's and Sylvester's constructions, against what is known of Hadamard matrices."""

import numpy as np
import pytest

from gs_hadamard.field import Field, prime_power
from gs_hadamard.orders import factors_of, hadamard, largest_order

# Orders up to 200 that neither construction nor a product of them reaches (Hedayat and Wallis, "Hadamard matrices
# and their applications", Annals of Statistics 6 (1978)).
UNREACHED = [92, 116, 156, 172, 184, 188]
LAYERS = {
    "1408 = 44 · 32": (1408, (44, 2, 2, 2, 2, 2)),
    "Llama-2-7B": (11008, (344, 2, 2, 2, 2, 2)),  # 343 = 7³
    "Llama-3-8B": (14336, (28, *[2] * 9)),  # 27 = 3³, or 13
    "Qwen2.5-7B": (18944, (148, *[2] * 7)),
    "Llama-2-13B": (13824, (12, 12, 12, 2, 2, 2)),
    "Llama-3.1-405B": (53248, (52, *[2] * 10)),  # 25 = 5²
}


@pytest.mark.parametrize("order", [2, 4, 8, 12, 20, 24, 28, 36, 44, 48, 52, 60, 76, 100, 108, 148, 244, 344])
def test_rows_are_orthogonal(order: int) -> None:
    """12 from the field of 11, 28 from 27 = 3³, 52 from 25 = 5², 244 from 243 = 3⁵, 344 from 343 = 7³."""
    matrix = hadamard(order).astype(np.int64)
    assert set(np.unique(matrix)) == {-1, 1}
    assert np.array_equal(matrix @ matrix.T, order * np.eye(order, dtype=np.int64))


def test_every_order_of_the_theory_is_reached() -> None:
    reached = [n for n in range(1, 201) if factors_of(n) is not None]
    assert reached == [1, 2, *(n for n in range(4, 201, 4) if n not in UNREACHED)]


@pytest.mark.parametrize(("features", "factors"), LAYERS.values(), ids=LAYERS)
def test_layers_of_real_models_need_no_blocks(features: int, factors: tuple[int, ...]) -> None:
    assert factors_of(features) == factors
    assert largest_order(features) == features


def test_where_nothing_is_reached_blocks_are() -> None:
    assert largest_order(92) == 4
    assert largest_order(7) == 1
    with pytest.raises(ValueError, match="order 92"):
        hadamard(92)


@pytest.mark.parametrize(("p", "k"), [(3, 1), (13, 1), (3, 2), (5, 2), (3, 3), (7, 2), (3, 4)])
def test_half_of_a_field_are_squares(p: int, k: int) -> None:
    residues = Field(p, k).residues()
    size = p**k
    assert np.array_equal(np.diag(residues), np.zeros(size))
    assert (residues.sum(axis=1) == 0).all()
    # -1 is a square where the field has 1 modulo 4 elements: then the matrix is symmetric, else antisymmetric.
    assert np.array_equal(residues.T, residues if size % 4 == 1 else -residues)
    # Q Qᵀ = q I - J: what makes the constructions work.
    wanted = size * np.eye(size) - np.ones((size, size))
    assert np.array_equal(residues.astype(int) @ residues.T, wanted)


def test_prime_powers() -> None:
    assert [n for n in range(2, 33) if prime_power(n) is None] == [6, 10, 12, 14, 15, 18, 20, 21, 22, 24, 26, 28, 30]
    assert prime_power(343) == (7, 3)
    assert prime_power(1) is None
