"""Checks of single values. Types are exact: ``True`` is no number, and ``1`` is not ``1.0``, as in Golden Stick."""

from collections.abc import Sequence
from typing import Any


def typed(name: str, value: Any, *kinds: type) -> None:
    """Raise ``TypeError`` unless the value is of one of these types."""
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise TypeError(f"{name}: expected {wanted}, got {value!r} ({type(value).__name__})")


def one_of(name: str, value: Any, allowed: Sequence[Any]) -> None:
    """Raise ``ValueError`` unless the value is one of these."""
    if value not in allowed:
        raise ValueError(f"{name}: got {value!r}, allowed: {', '.join(str(a) for a in allowed)}")


def fraction(name: str, value: float) -> None:
    """Raise ``ValueError`` unless the value is from 0 to 1."""
    if not 0.0 <= value <= 1.0:
        raise ValueError(f"{name}: got {value}, expected a number from 0 to 1")


def strings(name: str, value: Any) -> None:
    """Raise ``TypeError`` unless the value is a list of strings."""
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise TypeError(f"{name}: expected a list of strings, got {value!r}")
