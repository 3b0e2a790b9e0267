"""Maps kept as factors do what their whole matrix does."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gs_core import LinearMap
from gs_core.interfaces import Site, SiteTransform, through

sizes = st.lists(st.sampled_from([1, 2, 3, 4]), max_size=3)


def random_map(random: np.random.Generator, sizes: list[int], identities: list[bool], features: int, scaled: bool):
    """Factors near the identity, so that their inverses are tame."""
    factors = [
        n if one else np.eye(n) + 0.2 * random.standard_normal((n, n)) for n, one in zip(sizes, identities, strict=True)
    ]
    scale = np.exp(random.standard_normal(features)) if scaled else None
    return LinearMap(tuple(factors), scale)


@settings(deadline=None)
@given(sizes, st.integers(1, 3), st.booleans(), st.integers(0, 2**16))
def test_factors_do_what_the_whole_matrix_does(sizes: list[int], blocks: int, scaled: bool, seed: int) -> None:
    random = np.random.default_rng(seed)
    features = blocks * int(np.prod(sizes))
    made = random_map(random, sizes, list(random.random(len(sizes)) < 0.3), features, scaled)
    x, weight = random.standard_normal((2, 5, features)), random.standard_normal((7, features))
    assert made.objection(features) is None
    assert np.allclose(made.apply(x), x @ made.dense(features), atol=1e-10)
    assert np.allclose(made.undo(made.apply(x)), x, atol=1e-8)
    assert np.allclose(made.apply(x) @ made.inverse_transpose.apply(weight).T, x @ weight.T, atol=1e-8)
    again = LinearMap.restore(made.describe(), made.arrays())
    assert np.array_equal(again.apply(x), made.apply(x))


def test_a_pair_of_factors_is_flatquants() -> None:
    """``reshape(x, (l, r))``, times R from the right, times L transposed from the left."""
    random = np.random.default_rng(0)
    left, right, x = (random.standard_normal(shape) for shape in ((3, 3), (4, 4), (12,)))
    assert np.allclose(LinearMap((left, right)).apply(x), (left.T @ x.reshape(3, 4) @ right).reshape(12))
    assert np.allclose(LinearMap((left, right)).dense(12), np.kron(left, right))


def test_its_kind_is_what_a_format_is_asked_for() -> None:
    turn = np.array([[0.6, -0.8], [0.8, 0.6]])
    assert LinearMap(scale=np.ones(4)).kind == "scale"
    assert LinearMap((2, turn), orthogonal=True).kind == "rotation"
    doubling = np.array([[1, 1], [1, -1]], np.float32) / 2**0.5
    fourfold = np.kron(doubling, doubling)
    assert LinearMap((doubling, fourfold), orthogonal=True).kind == "hadamard"
    assert LinearMap((doubling, fourfold), np.array([1.0, -1.0] * 4), orthogonal=True).kind == "rotation"
    assert LinearMap((fourfold[[0, 2, 1, 3]],), orthogonal=True).kind == "rotation", "another Hadamard matrix"
    assert LinearMap((turn, turn)).kind == "kronecker"


def test_what_it_keeps_of_a_range_is_a_kind_of_its_own_and_no_part_of_the_map() -> None:
    plain, clipped = (LinearMap((np.diag([1.0, 2.0]),), keep=keep) for keep in (1.0, 0.9))
    assert (plain.kind, clipped.kind) == ("kronecker", "clipped")
    assert "keep" not in plain.describe()
    assert LinearMap.restore(clipped.describe(), clipped.arrays()).keep == 0.9
    x = np.ones((3, 2))
    np.testing.assert_array_equal(clipped.apply(x), plain.apply(x))


def test_a_rotation_is_its_own_inverse_transpose() -> None:
    signs = np.array([1.0, -1.0, -1.0, 1.0])
    rotation = LinearMap((2, np.array([[0.6, -0.8], [0.8, 0.6]])), signs, orthogonal=True)
    assert rotation.inverse_transpose is rotation
    assert np.allclose(rotation.dense(4) @ rotation.dense(4).T, np.eye(4))


@pytest.mark.parametrize(("features", "why"), [(6, "do not divide 6"), (8, r"scale has shape \(4,\)")])
def test_what_does_not_fit_is_said(features: int, why: str) -> None:
    made = LinearMap((2, np.eye(2)), None if features == 6 else np.ones(4))
    assert why.replace("\\", "") in str(made.objection(features))


def test_damaged_arrays_are_refused() -> None:
    made = LinearMap((np.eye(2), np.eye(3)), np.ones(6))
    with pytest.raises(ValueError, match="factor_1 has shape"):
        LinearMap.restore(made.describe(), made.arrays() | {"factor_1": np.eye(2)})
    with pytest.raises(KeyError):
        LinearMap.restore(made.describe(), {})


def test_a_listener_sees_what_the_map_made() -> None:
    doubling, x = LinearMap(scale=np.full(3, 0.5)), np.ones((2, 3))
    seen, sites = [], {"s": Site("s", 3, ("layer",))}
    listen = through({"s": doubling}, sites, lambda name, x: seen.append((name, x.copy())))
    assert listen is not None
    assert np.array_equal(listen("s", x), 2 * x), "what no listener replaced is still mapped"
    assert listen("other", x) is None
    assert [(name, float(x[0, 0])) for name, x in seen] == [("s", 2.0), ("other", 1.0)]
    assert through({}, sites) is None, "nothing to do costs nothing"
    replaced = through({"s": doubling}, sites, lambda name, x: x + 1)
    assert np.array_equal(replaced("s", x), 2 * x + 1)


def test_what_is_read_back_of_a_cache_has_gone_back_through_the_map() -> None:
    """So that ``(q P⁻ᵀ) (k P)ᵀ`` is ``q kᵀ`` though nobody touches the query."""
    random = np.random.default_rng(0)
    x, seen = random.standard_normal((5, 6)), []
    online, sites = {"k": LinearMap((random.standard_normal((3, 3)),))}, {"k": Site("k", 6, (), "key", heads=2)}
    assert np.allclose(through(online, sites)("k", x), x), "nothing is quantized"
    listen = through(online, sites, lambda name, mapped: seen.append(mapped) or np.round(mapped))
    assert np.allclose(listen("k", x) @ online["k"].dense(6), np.round(seen[0]))
    assert np.allclose(seen[0], online["k"].apply(x))


@pytest.mark.parametrize(
    ("site", "why"),
    [
        (Site("s", 8, ("layer",)), None),
        (Site("s", 6, ("layer",)), "its factors 4 do not divide 6 features"),
        (Site("s", 8, (), "key", heads=2), None),
        (Site("s", 12, (), "key", heads=6), "its factors mix 4 channels, a head has 2"),
        (Site("s", 8, (), "unrotated_key", heads=2), "keys after their rotation can be mapped, not s"),
        (Site("s", 8, (), "value", heads=2), "keys after their rotation can be mapped, not s"),
    ],
)
def test_which_sites_can_be_mapped(site: Site, why: str | None) -> None:
    found = SiteTransform("s", LinearMap((np.eye(4),))).objection(site)
    assert found is None if why is None else why in str(found)
