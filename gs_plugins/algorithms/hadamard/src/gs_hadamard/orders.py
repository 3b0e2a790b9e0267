"""Hadamard matrices of the orders that Sylvester's and Paley's constructions reach.

Square matrices of ones and minus ones whose rows are orthogonal. Paley, "On orthogonal matrices", Journal of
Mathematics and Physics 12 (1933): with the quadratic residues of a field of ``q`` elements, one of order ``q + 1``
where ``q`` is 3 modulo 4, one of order ``2 (q + 1)`` where it is 1 modulo 4. Sylvester (1867): Kronecker products of
Hadamard matrices are Hadamard matrices, so an order is reached by factors, and a product with it takes one small
product for each.
"""

from functools import cache

import numpy as np

from gs_hadamard.field import Field, prime_power

LARGEST = 4096
"""The largest single factor that is made; larger ones are worth no product."""


@cache
def factors_of(order: int) -> tuple[int, ...] | None:
    """Orders of single constructions whose product is ``order``, those of the cheapest product; None without any."""
    if order == 1:
        return ()
    best: tuple[int, ...] | None = None
    for first in range(2, min(order, LARGEST) + 1):
        if order % first or not _single(first):
            continue
        rest = factors_of(order // first)
        if rest is not None and (best is None or first + sum(rest) < sum(best)):
            best = (first, *rest)
    return None if best is None else tuple(sorted(best, reverse=True))


def largest_order(features: int) -> int:
    """The largest order that divides ``features`` and is reached."""
    return next(n for n in range(features, 0, -1) if features % n == 0 and factors_of(n) is not None)


def _single(order: int) -> bool:
    """Whether one construction, no product, gives that order."""
    return order == 2 or _paley(order) is not None


def _paley(order: int) -> tuple[int, int] | None:
    """The field, as a prime and an exponent, from which an order above 2 is made."""
    if order % 4:
        return None
    for elements, remainder in ((order - 1, 3), (order // 2 - 1, 1)):
        found = prime_power(elements)
        if found and elements % 4 == remainder:
            return found
    return None


@cache
def hadamard(order: int) -> np.ndarray:
    """One construction's matrix, int8 ``(order, order)``. Raises ``ValueError`` for an order that needs a product."""
    if order == 2:
        return np.array([[1, 1], [1, -1]], np.int8)
    found = _paley(order)
    if found is None:
        raise ValueError(f"no single construction gives a Hadamard matrix of order {order}")
    residues = Field(*found).residues()
    size = len(residues)
    bordered = np.zeros((size + 1, size + 1), np.int8)
    bordered[0, 1:] = 1
    bordered[1:, 0] = -1 if size % 4 == 3 else 1
    bordered[1:, 1:] = residues
    identity = np.eye(size + 1, dtype=np.int8)
    if size % 4 == 3:
        return identity + bordered
    ones, turned = np.array([[1, 1], [1, -1]], np.int8), np.array([[1, -1], [-1, -1]], np.int8)
    return np.kron(bordered, ones) + np.kron(identity, turned)
