"""Where a device has fast products in bfloat16, Hessians and feedback are made of those where it costs nothing."""

import numpy as np
import pytest
import torch

from gs_core import QuantizationArgs, numerics
from gs_core.arrays import to_numpy
from gs_core.products import rough_products
from gs_gptq import GPTQ, Hessian, Options
from gs_gptq.hessian import received

OUT, IN = 96, 256
GROUP = QuantizationArgs(format="int4", granularity="group", group_size=32)


@pytest.fixture
def weight() -> np.ndarray:
    return (0.05 * np.random.default_rng(0).standard_normal((OUT, IN))).astype(np.float32)


@pytest.fixture
def both(quantized, output_error):
    """``(weight, x, **options)``: codes and the output's error, by exact products and by rough ones."""

    def run(weight: np.ndarray, x: np.ndarray, **options: object) -> list[tuple[np.ndarray, float]]:
        found = []
        for dtype in (None, "bfloat16"):
            with rough_products(dtype):
                got = quantized(torch.from_numpy(weight), torch.from_numpy(x), GROUP, block_size=32, **options)
            values = to_numpy(numerics.dequantize(got))
            found.append((to_numpy(got.codes), output_error(weight, values, x)))
        return found

    return run


@pytest.mark.parametrize("outliers", [0, 3])
@pytest.mark.parametrize("sweeps", [0, 2])
def test_the_error_is_as_small(correlated, both, weight, outliers, sweeps):
    x = correlated(0, tokens=1024, features=IN, rank=40, outliers=outliers)
    (exact, least), (rough, error) = both(weight, x, sweeps=sweeps)
    assert (exact != rough).any() and error < 1.01 * least


@pytest.mark.parametrize("damping", [0.0035, 0.02])
def test_beside_a_channel_of_huge_activations_it_is_as_small(correlated, both, weight, damping):
    """On average: where codes are almost equally good, the last digit sends a row another way, up or down."""
    ratios = []
    for seed in range(6):
        x = correlated(seed, tokens=1024, features=IN, rank=40)
        x[:, 7] = 3000 * x[:, 3]
        (_, least), (_, error) = both(weight, x, sweeps=1, damping=damping)
        ratios.append(error / least)
    assert np.mean(ratios) < 1.01


@pytest.mark.parametrize(("large", "exact"), [(1.0, False), (300.0, True)])
def test_products_are_exact_where_others_reach_far(large, exact):
    """There the last digits of what they add would decide."""
    random = torch.Generator().manual_seed(0)
    shares, errors = 0.5 * torch.randn(8, IN, generator=random), torch.randn(IN, OUT, generator=random)
    shares[:, 7] *= large
    with rough_products("bfloat16"):
        found = received(shares, errors, torch.ones(8))
    assert found.dtype == torch.float32
    assert torch.equal(found, shares @ errors) == exact
    torch.testing.assert_close(found, shares @ errors, rtol=2**-7, atol=0.3)


def activations(kind: str, tokens: int, features: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    x, number = torch.randn(tokens, features, generator=random), torch.arange(1, features + 1)
    directions = torch.linalg.qr(torch.randn(features, features, generator=random))[0]
    match kind:
        case "falling":  # as the spectra of trained models do
            x = x * number**-0.5 @ directions
        case "steep":
            x = x / number @ directions
        case "off centre":
            x += 3 * torch.randn(features, generator=random)
        case "massive":  # a few tokens, huge in the same few channels
            x[::100, :6] += 1000 * torch.tensor([1, 0.9, -0.8, 0.7, 0.5, 0.3])
        case "large":
            x[:, :4] *= 100
    return x.bfloat16().float()


@pytest.mark.parametrize("kind", ["even", "falling", "steep", "off centre", "massive", "large"])
def test_what_any_error_costs_is_known_to_one_in_a_hundred(kind):
    """However the activations are correlated: ``e H eᵀ`` with the damping, for every ``e``."""
    x = activations(kind, tokens=1024, features=IN)
    exact = x.double().T @ x.double()
    with rough_products("bfloat16"):
        hessian = Hessian()
        hessian.update(x)
    damped = exact + Options().damping * exact.diagonal().median() * torch.eye(IN)
    root = torch.linalg.inv(torch.linalg.cholesky(damped))
    off = torch.linalg.matrix_norm(root @ (hessian.take().double() - exact) @ root.T, ord=2)
    assert 0 < off < 0.01


def test_with_next_to_no_damping_a_hessian_is_exact():
    x = activations("falling", tokens=512, features=IN)
    with rough_products("bfloat16"):
        hessian = GPTQ(Options(damping=1e-4)).observe(site=None)
        hessian.update(x)
    torch.testing.assert_close(hessian.take(), x.T @ x, rtol=1e-5, atol=1e-3)
