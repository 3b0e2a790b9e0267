"""Products that need not be exact: an adapter says in which dtype, for a while; without a word nothing changes."""

import numpy as np
import pytest

from gs_core.arrays import dtype_name
from gs_core.products import rough, rough_products

X = np.full((2, 3), 1 + 2.0**-12, np.float32)


def test_operands_are_as_they_were_unless_an_adapter_says_so():
    assert rough(X) is X


def test_operands_are_rounded_to_the_dtype_that_was_set():
    with rough_products("bfloat16"):
        assert dtype_name(rough(X)) == "bfloat16"
        assert (rough(X) == 1).all()


def test_the_setting_ends_with_its_context():
    with pytest.raises(KeyError), rough_products("bfloat16"):
        with rough_products(None):
            assert rough(X) is X
        assert dtype_name(rough(X)) == "bfloat16"
        raise KeyError
    assert rough(X) is X
