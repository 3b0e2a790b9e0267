"""R3: cached keys are rotated head by head, by a matrix that engines make for themselves."""

from types import SimpleNamespace

import pytest

from gs_core import Site
from gs_hadamard import Hadamard
from gs_hadamard.plugin import Options


def keys(heads: int, size: int) -> Site:
    return Site("attention.key", heads * size, (), "key", heads)


def smoothed(site: Site, **options) -> list:
    algorithm = Hadamard(Options(r1=False, **options))
    return algorithm.smooth(block=SimpleNamespace(folds=lambda: []), layers=[], keys=[site])


@pytest.mark.parametrize(("size", "block"), [(64, 64), (128, 128), (80, 16), (96, 32)])
def test_a_head_is_rotated_by_the_largest_power_of_two_that_divides_it(size, block):
    (transform,) = smoothed(keys(3, size), r3=True)
    assert (transform.site, transform.map.kind, transform.map.block) == ("attention.key", "hadamard", block)
    assert transform.objection(keys(3, size)) is None


def test_keys_are_left_alone_unless_asked():
    assert smoothed(keys(2, 64)) == []
    assert Hadamard().maps_keys == {}
    assert list(Hadamard(Options(r3=True)).maps_keys) == ["hadamard"]
