"""Which two sizes a Kronecker pair has: their product is the number of features, or that of a block of them."""

from functools import cache


@cache
def pair(features: int, largest: int, multiple: int = 1, parts: int = 1) -> tuple[int, int]:
    """``(left, right)`` of equal parity, as close to each other as can be: the closest pair costs least, ``left +
    right`` products for each feature. Where there is none, as of twice an odd number, of unequal parity. (The authors
    look for two squares with a given difference, which is the same, but for the search that then never ends; engines
    that work out the factors for themselves expect those that they would find.)

    largest: neither may be larger (kernels have limits). multiple: ``right`` must be a multiple of it. parts: the
    features are divided among so many devices, and no block lies on two.

    Where no pair covers all features, that of the largest block of them that can be covered: the map is then
    block-diagonal. Raises ``ValueError`` when there is none but ``(1, 1)``.
    """
    if features % parts:
        raise ValueError(f"{features} features cannot be divided among {parts} devices")
    for block in _divisors(features // parts):
        pairs = [
            (block // right, right)
            for right in _divisors(block)
            if right % multiple == 0 and max(right, block // right) <= largest
        ]
        if pairs and block > 1:
            return min(pairs, key=lambda sizes: (sum(sizes) % 2, sum(sizes), sizes))
    raise ValueError(
        f"no Kronecker pair with factors of at most {largest}, the right one a multiple of {multiple}, divides "
        f"{features} features in {parts} parts; raise max_factor, or lower factor_multiple"
    )


def _divisors(number: int) -> list[int]:
    """Largest first."""
    small = [n for n in range(1, int(number**0.5) + 1) if number % n == 0]
    return sorted({*small, *(number // n for n in small)}, reverse=True)
