"""Invertible matrices that can be learned, each with its inverse transpose at hand."""

from typing import Any

import torch


class Learned:
    """A square matrix as ``U diag(d) Vᵀ`` with orthogonal ``U`` and ``V``: its inverse transpose is
    ``U diag(1/d) Vᵀ``, which is as well conditioned as ``d``. It starts as a random rotation.

    An orthogonal matrix is Cayley's transform of a skew-symmetric one, ``(I + A)⁻¹ (I − A)``.
    """

    def __init__(self, size: int, generator: torch.Generator, device: Any = "cpu"):
        self.left, self.right = (random_rotation(size, generator).tril(-1).to(device) for _ in range(2))
        self.middle = torch.ones(size, device=device)

    def parameters(self) -> list[torch.Tensor]:
        return [self.left, self.right, self.middle]

    def both(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The matrix and its inverse transpose."""
        left, right = cayley(self.left), cayley(self.right)
        return left * self.middle @ right.T, left / self.middle @ right.T


class Direct:
    """A square matrix as it is, inverted in float64. It starts as a random rotation."""

    def __init__(self, size: int, generator: torch.Generator, device: Any = "cpu"):
        self.matrix = random_rotation(size, generator).to(device)

    def parameters(self) -> list[torch.Tensor]:
        return [self.matrix]

    def both(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.matrix, torch.linalg.inv(self.matrix.double()).T.float()


def cayley(lower: torch.Tensor) -> torch.Tensor:
    """The orthogonal matrix of a lower triangle."""
    skew = lower.tril(-1) - lower.tril(-1).T
    identity = torch.eye(len(skew), dtype=skew.dtype, device=skew.device)
    return torch.linalg.solve(identity + skew, identity - skew)


def random_rotation(size: int, generator: torch.Generator) -> torch.Tensor:
    """Uniform among the orthogonal matrices: QR of a Gaussian one, with the signs of R's diagonal taken out."""
    q, r = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    return (q * r.diagonal().sign()).float()


def kronecker(x: torch.Tensor, left: torch.Tensor, right: torch.Tensor | int) -> torch.Tensor:
    """``x · (I ⊗ left ⊗ right)`` on the last axis, without ever making the product; a whole number is an identity."""
    size = right if isinstance(right, int) else len(right)
    tiles = x.reshape(-1, len(left), size)
    if not isinstance(right, int):
        tiles = tiles @ right
    return (left.T @ tiles).reshape(x.shape)
