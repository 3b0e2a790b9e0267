"""How far arrays are apart, and what is no number."""

import numpy as np
import pytest

from gs_core import CalibrationError
from gs_core.comparing import channel_error, check_finite, relative_error


def test_a_relative_error_is_of_squares():
    wanted = np.array([[3.0, 4.0]], np.float32)
    assert relative_error(wanted, wanted) == 0
    assert relative_error(wanted, 0 * wanted) == 1
    assert relative_error(wanted, np.array([[3.0, 3.0]], np.float32)) == pytest.approx(1 / 25)
    assert relative_error(0 * wanted, wanted) == 0, "nothing to be relative to"


def test_a_channel_error_is_not_hidden_by_a_huge_channel():
    wanted = np.array([[1000.0, 1.0], [-1000.0, -1.0]], np.float32)
    got = wanted + np.array([0.0, 0.5], np.float32)
    assert channel_error(wanted, got) == pytest.approx(0.25)
    assert relative_error(wanted, got) < 1e-6
    assert channel_error(wanted[:, None, :], got[:, None, :]) == pytest.approx(0.25)
    assert channel_error(0 * wanted, got) == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_named(value):
    check_finite(np.ones((2, 2)), "it")
    with pytest.raises(CalibrationError, match=r"^it is not finite"):
        check_finite(np.array([[1.0, value]]), "it")
