"""Matrices that stay invertible while they learn, and their product that is never made."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gs_core import LinearMap
from gs_flatquant.matrices import Direct, Learned, cayley, kronecker, random_rotation


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def test_cayleys_transform_is_orthogonal_whatever_is_learned(generator):
    rotation = cayley(10 * torch.randn(12, 12, generator=generator))
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(12), rtol=0, atol=1e-5)
    assert torch.equal(cayley(torch.zeros(3, 3)), torch.eye(3))


@pytest.mark.parametrize("kind", [Learned, Direct])
def test_it_starts_as_a_rotation(kind, generator):
    matrix, inverse_transpose = kind(16, generator).both()
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(16), rtol=0, atol=1e-5)
    torch.testing.assert_close(inverse_transpose, matrix, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", [Learned, Direct])
def test_the_inverse_transpose_is_one_after_any_step(kind, generator):
    learned = kind(16, generator)
    for tensor in learned.parameters():
        tensor += 0.1 * torch.randn(tensor.shape, generator=generator)
    matrix, inverse_transpose = learned.both()
    torch.testing.assert_close(matrix.T @ inverse_transpose, torch.eye(16), rtol=0, atol=1e-4)
    assert (matrix @ matrix.T - torch.eye(16)).abs().max() > 0.01


def test_random_rotations_are_uniform(generator):
    """No direction is preferred: the mean of many vanishes."""
    mean = torch.stack([random_rotation(4, generator) for _ in range(2000)]).mean(0)
    assert mean.abs().max() < 0.05


@pytest.mark.parametrize("right", [5, None], ids=["an identity", "a matrix"])
def test_the_product_is_kroneckers(right, generator):
    left, other = torch.randn(3, 3, generator=generator), torch.randn(5, 5, generator=generator)
    x = torch.randn(2, 7, 30, generator=generator)  # two blocks of fifteen
    dense = np.kron(np.eye(2), np.kron(left, np.eye(5) if right else other)).astype(np.float32)
    found = kronecker(x, left, right or other)
    torch.testing.assert_close(found, x @ torch.from_numpy(dense), rtol=0, atol=1e-4)
    torch.testing.assert_close(found, LinearMap((left, right or other)).apply(x), rtol=0, atol=1e-5)


def test_mapped_weights_undo_mapped_activations(generator):
    """``(x · L ⊗ R) · (W · L⁻ᵀ ⊗ R⁻ᵀ)ᵀ = x · Wᵀ``: the orientation of the authors' export."""
    left, right = Learned(4, generator), Learned(6, generator)
    left.middle += torch.rand(4, generator=generator)
    x, weight = torch.randn(9, 24, generator=generator), torch.randn(5, 24, generator=generator)
    (forth_left, back_left), (forth_right, back_right) = left.both(), right.both()
    mapped = kronecker(weight, back_left, back_right)
    torch.testing.assert_close(kronecker(x, forth_left, forth_right) @ mapped.T, x @ weight.T)


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation made."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return made


def test_the_large_matrix_is_never_made(generator):
    """11008 features: its square would take 485 MB."""
    left, right = Learned(86, generator), Learned(128, generator)
    for tensor in [*left.parameters(), *right.parameters()]:
        tensor.requires_grad_()
    with Largest() as seen:
        x = torch.randn(4, 11008)
        kronecker(x, left.both()[0], right.both()[0]).square().sum().backward()
    assert seen.elements == 4 * 11008
