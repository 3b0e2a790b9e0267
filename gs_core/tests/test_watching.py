"""What is made of activations at sites."""

import numpy as np
import pytest

from gs_core.interfaces import StaticInput
from gs_core.watching import fake_quantizer
from gs_schemas import SCHEMES


def test_activations_are_replaced_where_the_scheme_quantizes_them():
    x = np.array([[0.3, 1.0]], np.float32)
    static = StaticInput(np.array([0.5], np.float32))
    replace = fake_quantizer(
        {
            "float": (SCHEMES["W4A16"], None),
            "dynamic": (SCHEMES["W8A8"], None),
            "static": (SCHEMES["W8A8_STATIC"], static),
            "unseen": (SCHEMES["W8A8_STATIC"], None),
        }
    )
    assert replace("elsewhere", x) is None
    assert replace("float", x) is None
    assert replace("unseen", x) is None
    assert replace("static", x).tolist() == [[0.5, 1.0]]
    assert replace("dynamic", x) == pytest.approx(x, abs=1 / 127)
