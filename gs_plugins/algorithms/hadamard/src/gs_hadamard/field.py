"""Finite fields, as far as quadratic residues need them."""

from itertools import product

import numpy as np


def prime_power(n: int) -> tuple[int, int] | None:
    """``(p, k)`` with ``n = p ** k`` and ``p`` prime, or None."""
    if n < 2:
        return None
    p = next((d for d in range(2, int(n**0.5) + 1) if n % d == 0), n)
    k = 0
    while n % p == 0:
        n, k = n // p, k + 1
    return (p, k) if n == 1 else None


class Field:
    """The field of ``p ** k`` elements: polynomials over the integers modulo ``p``, modulo an irreducible one.

    An element is the number whose digits to the base ``p``, lowest first, are its coefficients.
    """

    def __init__(self, p: int, k: int):
        self.p, self.k, self.size = p, k, p**k
        digits = np.arange(self.size)[:, None] // p ** np.arange(k) % p
        self._digits = digits.astype(np.int64)
        self._modulus = self._irreducible()

    def residues(self) -> np.ndarray:
        """Whether the difference of two elements is a square: int8 ``(size, size)`` of 1, -1, and 0 on the diagonal."""
        character = np.full(self.size, -1, np.int8)
        character[self._squares(self._modulus)] = 1
        character[0] = 0
        difference = (self._digits[:, None, :] - self._digits[None, :, :]) % self.p
        return character[difference @ self.p ** np.arange(self.k)]

    def _squares(self, modulus: np.ndarray) -> np.ndarray:
        """The square of every element."""
        wide = np.zeros((self.size, 2 * self.k - 1), np.int64)
        for i in range(self.k):
            for j in range(self.k):
                wide[:, i + j] += self._digits[:, i] * self._digits[:, j]
        for top in range(2 * self.k - 2, self.k - 1, -1):  # x^k is minus the rest of the modulus
            wide[:, top - self.k : top] -= wide[:, top : top + 1] * modulus
        return wide[:, : self.k] % self.p @ self.p ** np.arange(self.k)

    def _irreducible(self) -> np.ndarray:
        """Coefficients below the first of a monic polynomial of degree ``k`` that no other divides, lowest first."""
        for below in product(range(self.p), repeat=self.k):
            if not any(
                _divides((*divisor, 1), (*below, 1), self.p)
                for degree in range(1, self.k // 2 + 1)
                for divisor in product(range(self.p), repeat=degree)
            ):
                return np.array(below, np.int64)
        raise AssertionError("every field has one")


def _divides(divisor: tuple[int, ...], polynomial: tuple[int, ...], p: int) -> bool:
    """Whether one monic polynomial divides another, modulo ``p``."""
    left = list(polynomial)
    while len(left) >= len(divisor):
        top = left[-1]
        shift = len(left) - len(divisor)
        for i, coefficient in enumerate(divisor):
            left[shift + i] = (left[shift + i] - top * coefficient) % p
        left.pop()
    return not any(left)
