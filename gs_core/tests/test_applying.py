"""A transform applied to parameters that can be written into leaves the function as it was."""

import numpy as np
import pytest

from gs_core import ChannelScale, Fold, FoldTransform, LinearMap, Site, SiteTransform
from gs_core.applying import Norm, WritableBlock
from gs_core.arrays import astype

random = np.random.default_rng(0)
SCALE = np.array([0.3, 1.7, 4.0, 0.9], np.float32)
SHIFT = np.array([0.2, -3.0, 0.0, 1.0], np.float32)
ROTATION = np.linalg.qr(random.standard_normal((2, 2)))[0].astype(np.float32)
X = random.standard_normal((5, 4)).astype(np.float32)


class Small(WritableBlock):
    """``last(first(norm(x)))``, biases everywhere. ``shared``: what the norm makes enters another module too.
    ``rereads``: it has a source to read parameters from again."""

    name, index = "block", 0

    def __init__(self, shared=False, rereads=False):
        random = np.random.default_rng(1)
        self.values = {
            f"{name}.{leaf}": random.standard_normal(shape).astype(np.float32)
            for name, rows in (("norm", None), ("first", 4), ("last", 3))
            for leaf, shape in (("weight", (rows, 4) if rows else 4), ("bias", rows or 4))
        }
        self.values["norm.weight"][2] = -1.0  # with the offset, a channel of zeros
        self.sites = {"in": Site("in", 4, ("first",)), "middle": Site("middle", 4, ("last",))}
        self.layers, self.changed, self.shared = {}, set(), shared
        self.norms = {"norm": Norm("norm.weight", "norm.bias", 1.0)}
        self.source = {name: value.copy() for name, value in self.values.items()} if rereads else {}

    def parameter(self, name):
        self.source.pop(name, None)
        return self.values[name]

    def original(self, name):
        found = self.source.get(name)
        return None if found is None else lambda: found

    def stored_dtype(self, parameter):
        return "bfloat16"

    def producing(self, layer, keep):
        return keep(f"{layer}.weight"), keep(f"{layer}.bias")

    def consuming(self, site, keep):
        for layer in self.sites[site].layers:
            yield keep(f"{layer}.weight"), f"{layer}.bias"

    def stranger(self, site):
        return "gate.weight" if self.shared else None

    def run(self, tokens, previous, on_site=None, weights=None):
        value = {name: array.astype(np.float64) for name, array in self.values.items()}
        x = tokens * (value["norm.weight"] + 1) + value["norm.bias"]
        for site, layer in (("in", "first"), ("middle", "last")):
            x = self.online[site].apply(x) if site in self.online else x
            x = x @ value[f"{layer}.weight"].T + value[f"{layer}.bias"]
        return {"hidden": x}

    def rest(self, quantized):
        return iter(())


def transforms():
    """By what they are: transforms, and the parameters that they change."""
    into_norm, into_first = Fold("norm", ("in",), 4, shifts=True), Fold("first", ("middle",), 4, head=2, shifts=True)
    rotation = LinearMap((ROTATION,), orthogonal=True)
    norm, first, last = ({f"{name}.weight", f"{name}.bias"} for name in ("norm", "first", "last"))
    return {
        "a scale into a norm": (ChannelScale(into_norm, SCALE), norm | {"first.weight"}),
        "a shift too": (ChannelScale(into_norm, SCALE, SHIFT), norm | first),
        "a scale into a layer": (ChannelScale(into_first, SCALE), first | {"last.weight"}),
        "a shift there too": (ChannelScale(into_first, SCALE, SHIFT), first | last),
        "a rotation of heads": (FoldTransform(into_first, rotation), first | {"last.weight"}),
        "a map that stays": (SiteTransform("middle", LinearMap((2 * ROTATION,))), {"last.weight"}),
    }


@pytest.mark.parametrize("rereads", [False, True])
@pytest.mark.parametrize("kind", transforms())
def test_the_function_stays_and_every_bit_comes_back(kind, rereads):
    block = Small(rereads=rereads)
    transform, touched = transforms()[kind]
    before = {name: value.copy() for name, value in block.values.items()}
    wanted = block.run(X, None)["hidden"]
    _, undo = block.apply(transform)
    changed = {name for name, value in block.values.items() if not np.array_equal(value, before[name])}
    assert changed == block.changed == touched
    np.testing.assert_allclose(block.run(X, None)["hidden"], wanted, rtol=1e-4, atol=1e-4)
    undo()
    assert all(np.array_equal(value, before[name]) for name, value in block.values.items())
    assert not block.changed and not block.online


def test_what_was_changed_before_comes_back_as_it_was_then():
    """The source says what a parameter was at first, not what another transform made of it."""
    block = Small(rereads=True)
    block.apply(transforms()["a scale into a norm"][0])
    before = {name: value.copy() for name, value in block.values.items()}
    _, undo = block.apply(transforms()["a scale into a layer"][0])
    assert not np.array_equal(block.values["first.weight"], before["first.weight"])
    undo()
    assert all(np.array_equal(value, before[name]) for name, value in block.values.items())


def test_a_norm_holds_what_its_dtype_can_and_the_consumers_get_the_rest():
    block = Small()
    applied, _ = block.apply(transforms()["a shift too"][0])
    for name in ("norm.weight", "norm.bias"):
        value = block.values[name]
        assert np.array_equal(astype(astype(value, "bfloat16"), "float32"), value)
    assert 0 < np.abs(applied.scale / SCALE - 1).max() < 2**-7


def test_what_another_module_reads_gets_no_map():
    block = Small(shared=True)
    with pytest.raises(ValueError, match="shares the input and is no layer"):
        block.apply(SiteTransform("in", LinearMap((ROTATION,))))


def test_what_a_map_cannot_be_is_refused_and_nothing_is_left_of_it():
    block = Small()
    before = {name: value.copy() for name, value in block.values.items()}
    refused = {
        "groups of 1": FoldTransform(Fold("norm", ("in",), 4), LinearMap((ROTATION,))),
        "do not divide 4 features": SiteTransform("in", LinearMap((np.eye(3, dtype=np.float32),))),
    }
    for why, transform in refused.items():
        with pytest.raises(ValueError, match=why):
            block.apply(transform)
    assert all(np.array_equal(value, before[name]) for name, value in block.values.items()) and not block.changed


def test_nothing_folds_behind_a_map_that_is_computed_at_run_time():
    block = Small()
    block.apply(SiteTransform("middle", LinearMap((ROTATION,))))
    with pytest.raises(ValueError, match="middle has a map that is computed at run time"):
        block.apply(ChannelScale(Fold("first", ("middle",), 4), SCALE))
