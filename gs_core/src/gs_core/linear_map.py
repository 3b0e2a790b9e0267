"""Invertible maps of the features of an activation, kept as factors so that the large matrix is never made."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from gs_core.arrays import Array, astype, like, namespace, to_numpy

Factor = Array | int
"""A square matrix, or the size of an identity that stands for one."""


@dataclass(frozen=True, eq=False)
class LinearMap:
    """``x ↦ (x / scale) · (I ⊗ F₁ ⊗ F₂ ⊗ …)`` on the last axis of ``x``.

    scale: ``(features,)``, or ``None``: not scaled. factors: square matrices; features are taken in blocks of as many
    as the sizes of the factors multiply to, the first factor mixing the farthest features of a block. A whole number
    is the identity of that size. orthogonal: whether it is its own inverse transpose (every factor orthogonal, every
    scale 1 or -1); the caller's word. keep: how much of the range of what it makes the dynamic scales of an engine
    cover; the map itself clips nothing.

    A scale alone is SmoothQuant's, one factor a block-diagonal rotation, two FlatQuant's Kronecker pair
    (https://arxiv.org/abs/2410.09426, section 3.1), many a fast Hadamard transform.
    """

    factors: tuple[Factor, ...] = ()
    scale: Array | None = None
    orthogonal: bool = False
    keep: float = 1.0

    @property
    def kind(self) -> str:
        """What a checkpoint format says whether it holds: ``scale``; ``hadamard``, a rotation by blocks of
        Sylvester's matrix, which an engine makes for itself; any other ``rotation``; ``clipped``, whatever has a
        ``keep`` of its own; ``kronecker``, the rest."""
        if self.keep != 1:
            return "clipped"
        if not self.factors:
            return "scale"
        if not self.orthogonal:
            return "kronecker"
        return "hadamard" if self.scale is None and all(map(_is_sylvester, self.factors)) else "rotation"

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(factor if isinstance(factor, int) else int(factor.shape[0]) for factor in self.factors)

    @property
    def block(self) -> int:
        """How many neighbouring features are mixed with one another."""
        return math.prod(self.sizes)

    def objection(self, features: int) -> str | None:
        """Why it cannot map that many features, or ``None``."""
        if self.scale is not None and tuple(self.scale.shape) != (features,):
            return f"its scale has shape {tuple(self.scale.shape)}, there are {features} features"
        if features % self.block:
            return f"its factors {' · '.join(map(str, self.sizes))} do not divide {features} features"
        return None

    def apply(self, x: Array) -> Array:
        """The map of ``x``, ``(..., features)``, in its dtype, by one small product for each factor."""
        xp, shape = namespace(x), x.shape
        if self.scale is not None:
            x = x / like(self.scale, x)
        after = 1
        for size, factor in zip(reversed(self.sizes), reversed(self.factors), strict=True):
            if not isinstance(factor, int):
                matrix = like(factor, x)
                if after == 1:
                    x = xp.reshape(xp.reshape(x, (-1, size)) @ matrix, shape)
                else:
                    x = xp.reshape(matrix.T @ xp.reshape(x, (-1, size, after)), shape)
            after *= size
        return x

    @cached_property
    def inverse_transpose(self) -> "LinearMap":
        """What the weights of the fed layers go through: ``T(x) · T⁻ᵀ(W)ᵀ = x · Wᵀ``. Inverted in float64."""
        if self.orthogonal:
            return self
        scale = None if self.scale is None else 1.0 / self.scale
        return LinearMap(tuple(f if isinstance(f, int) else _inverse_transpose(f) for f in self.factors), scale)

    def as_float64(self) -> "LinearMap":
        """The same map with float64 arrays.

        A float32 factor of an orthogonal map is orthogonal up to rounding. One Newton-Schulz step
        (https://arxiv.org/abs/1808.03034) makes it orthogonal up to float64 rounding. A factor that is far from
        orthogonal remains far from orthogonal.
        """
        factors = tuple(f if isinstance(f, int) else _wide(f, self.orthogonal) for f in self.factors)
        scale = None if self.scale is None else astype(self.scale, "float64")
        return replace(self, factors=factors, scale=scale)

    def undo(self, y: Array) -> Array:
        """The ``x`` that ``apply`` made ``y`` of."""
        back = tuple(f if isinstance(f, int) else f.T for f in self.inverse_transpose.factors)
        x = LinearMap(back).apply(y)
        return x if self.scale is None else x * like(self.scale, x)

    def dense(self, features: int) -> np.ndarray:
        """The whole matrix, float64 ``(features, features)``: for formats that hold nothing else, and for tests."""
        matrix = np.eye(features) if self.scale is None else np.diag(1.0 / to_numpy(self.scale).astype(np.float64))
        factors = tuple(f if isinstance(f, int) else to_numpy(f).astype(np.float64) for f in self.factors)
        return LinearMap(factors).apply(matrix)

    # --- to and from files -----------------------------------------------------------------------------------

    def describe(self) -> dict[str, Any]:
        """Plain data that, with ``arrays()``, makes it again."""
        identity = [isinstance(factor, int) for factor in self.factors]
        described = {
            "kind": self.kind,
            "sizes": list(self.sizes),
            "identity": identity,
            "scaled": self.scale is not None,
        }
        return described | ({} if self.keep == 1 else {"keep": self.keep})

    def arrays(self) -> dict[str, Array]:
        """``scale`` and ``factor_0``, ``factor_1`` …, those that there are."""
        found = {f"factor_{i}": f for i, f in enumerate(self.factors) if not isinstance(f, int)}
        return found | ({} if self.scale is None else {"scale": self.scale})

    @classmethod
    def restore(cls, description: Mapping[str, Any], arrays: Mapping[str, Array]) -> "LinearMap":
        """From ``describe()`` and ``arrays()``. Raises ``KeyError`` for a missing array, ``ValueError`` for others."""
        factors: list[Factor] = []
        for i, (size, identity) in enumerate(zip(description["sizes"], description["identity"], strict=True)):
            factor = int(size) if identity else arrays[f"factor_{i}"]
            if not isinstance(factor, int) and tuple(factor.shape) != (size, size):
                raise ValueError(f"factor_{i} has shape {tuple(factor.shape)}, its description says {size}")
            factors.append(factor)
        scale = arrays["scale"] if description["scaled"] else None
        orthogonal = description["kind"] in ("hadamard", "rotation")
        return cls(tuple(factors), scale, orthogonal, description.get("keep", 1.0))


def _is_sylvester(factor: Factor) -> bool:
    """Whether the matrix is Sylvester's, divided by the root of its order."""
    if isinstance(factor, int):
        return False
    matrix = to_numpy(factor)
    size = len(matrix)
    rows = np.arange(size)
    shared = rows[:, None] & rows  # the sign is the parity of the bits that row and column share
    parity = sum(shared >> bit & 1 for bit in range(size.bit_length())) % 2
    return not size & (size - 1) and bool(np.allclose(matrix, (1 - 2 * parity) / size**0.5, atol=1e-6))


def _wide(factor: Array, orthogonal: bool) -> Array:
    wide = astype(factor, "float64")
    return wide if not orthogonal or wide is factor else 1.5 * wide - 0.5 * wide @ (wide.T @ wide)


def _inverse_transpose(factor: Array) -> Array:
    xp = namespace(factor)
    inverse = xp.linalg.inv(astype(factor, "float64"))
    return xp.asarray(inverse.T, dtype=factor.dtype)
