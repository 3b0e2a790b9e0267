"""Orthogonal maps made of Hadamard matrices: as small factors, so that a product costs ``n log n`` and not ``n²``."""

import numpy as np

from gs_core import LinearMap
from gs_hadamard.orders import factors_of, hadamard, largest_order

SYLVESTER = 6
"""Doublings in one factor at most: small products of 64 cost less than twice as many of 8."""


def rotation(features: int, block_size: int | None = None, seed: int | None = None) -> LinearMap:
    """A Hadamard matrix of ``features``, or of ``block_size`` along the diagonal, divided by its root.

    Where no construction reaches the order, the blocks are of the largest order that divides it. ``seed``: random
    signs before it (QuaRot, https://arxiv.org/abs/2404.00456, section 3). Raises ``ValueError`` when blocks do not
    divide the features.
    """
    if block_size and features % block_size:
        raise ValueError(f"blocks of {block_size} do not divide {features} features")
    order = largest_order(block_size or features)
    signs = None
    if seed is not None:
        signs = (1 - 2 * np.random.default_rng(seed).integers(0, 2, features)).astype(np.float32)
    return LinearMap(tuple(_normalized(order)), signs, orthogonal=True)


def _normalized(order: int) -> list[np.ndarray]:
    """Float32 factors: the odd constructions, then Sylvester's doublings in few products of like size."""
    single = factors_of(order)
    assert single is not None
    matrices = [hadamard(n) for n in single if n > 2]
    doublings = single.count(2)
    products = -(-doublings // SYLVESTER)
    for i in range(products):
        sylvester = np.ones((1, 1), np.int8)
        for _ in range((doublings + i) // products):
            sylvester = np.kron(sylvester, hadamard(2))
        matrices.append(sylvester)
    return [(matrix / len(matrix) ** 0.5).astype(np.float32) for matrix in matrices]
