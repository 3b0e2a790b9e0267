"""Products in float32 stay exact, whichever library makes them."""

import pytest
import torch

from gs_hf import products
from gs_hf.products import fast_products


@pytest.fixture(autouse=True)
def highest(monkeypatch):
    """What torch begins with, on a processor that is not Intel's."""
    monkeypatch.setattr(products, "_is_intel", lambda: False)
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("size", [8, 100, 700])
def test_they_are_as_good_as_they_were(size):
    random = torch.Generator().manual_seed(0)
    x, y = (torch.randn(size, size, generator=random) for _ in range(2))
    wanted = x.double() @ y.double()

    def error(got: torch.Tensor) -> float:
        return float((got - wanted).norm() / wanted.norm())

    before = error(x @ y)
    with fast_products("cpu"):
        assert error(x @ y) < 2 * before < 1e-6


def test_torch_is_as_it_was_afterwards():
    with pytest.raises(KeyError), fast_products("cpu"):
        raise KeyError
    assert torch.get_float32_matmul_precision() == "highest"


def test_intels_processors_keep_intels_library(monkeypatch):
    monkeypatch.setattr(products, "_is_intel", lambda: True)
    with fast_products("cpu"):
        assert torch.get_float32_matmul_precision() == "highest"


def test_nothing_is_taken_that_loses_anything(monkeypatch):
    monkeypatch.setattr(products, "_exact", lambda size: size < 100)  # as where large products alone are rounded
    with fast_products("cpu"):
        assert torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize(("device", "precision"), [("cpu", "high"), ("cuda", "highest")])
def test_what_a_user_chose_and_other_devices_are_left_alone(device, precision):
    torch.set_float32_matmul_precision(precision)
    with fast_products(device):
        assert torch.get_float32_matmul_precision() == precision
    assert torch.get_float32_matmul_precision() == precision


def test_a_precision_chosen_for_one_library_is_left_alone():
    torch.backends.mkldnn.matmul.fp32_precision = "tf32"
    try:
        with fast_products("cpu"):
            assert torch.backends.mkldnn.matmul.fp32_precision == "tf32"
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = "none"


def test_the_trial_tells_narrower_formats_from_float32():
    """bfloat16, the sum of two of them, and tensor cores' 19 bits."""
    x = torch.tensor(products.FULL)
    high = x.bfloat16().float()
    assert high != x and high + (x - high).bfloat16().float() != x
    assert torch.tensor([x]).view(torch.int32) & 0x1FFF
