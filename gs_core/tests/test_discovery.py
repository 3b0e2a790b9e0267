"""Plugins of strangers, as real distributions on ``sys.path``: each fault hurts only who asks for it, and is named."""

import sys

import pytest

from gs_core import PluginError, discovery

GOOD = """
from gs_core import Algorithm, hookimpl

class Halve(Algorithm):
    @hookimpl
    def quantize(self, layers): ...
"""
# What is wrong with a plugin: its source, its entry point, and the end of the error that it gets.
FAULTS = {
    "an import that fails": (
        "import no_such_library",
        "Halve",
        "cannot be imported: ModuleNotFoundError: No module named 'no_such_library'",
    ),
    "a module that raises": (
        "raise RuntimeError('no licence')",
        "Halve",
        "cannot be imported: RuntimeError: no licence",
    ),
    "a syntax error": ("def :", "Halve", "cannot be imported: SyntaxError: "),
    "an attribute that is missing": (GOOD, "Halves", "cannot be imported: AttributeError: "),
    "an object that is no class": (
        GOOD + "\nhalve = Halve()",
        "halve",
        "must be a class, acme_broken:halve is <acme_broken.Halve object at ",
    ),
    "a hook with an argument that does not exist": (
        GOOD.replace("self, layers", "self, layers, temperature"),
        "Halve",
        "has a hook with the wrong signature: Plugin 'plugin' for hook 'quantize' hookimpl definition: ",
    ),
    "a hook that is misspelt": (
        GOOD.replace("def quantize", "def quantise"),
        "Halve",
        "implements 'quantise', which is not a hook; hooks are observe, smooth, quantize, pack, export",
    ),
}


@pytest.fixture
def acme(site):
    """A good plugin, ``halve``."""
    return site("acme", "1.2", modules={"acme": GOOD}, algorithm="halve = acme:Halve")


@pytest.fixture(autouse=True)
def _forget_modules():
    yield
    for module in ("acme", "acme_broken", "rival"):
        sys.modules.pop(module, None)


def test_listing_imports_nothing(acme):
    (acme / "acme.py").write_text("raise SystemExit('imported')")
    found = discovery.installed("algorithm")["halve"]
    assert (found.kind, found.name, found.distribution, found.version) == ("algorithm", "halve", "acme", "1.2")
    assert found.origin == "'halve' (acme 1.2)"
    assert list(discovery.installed("algorithm")) == sorted(discovery.installed("algorithm"))
    assert "halve" not in discovery.installed("format")


def test_a_good_plugin_loads(acme):
    assert discovery.load("algorithm", "halve").__name__ == "Halve"
    assert discovery.status(discovery.find("algorithm", "halve")) == "ok"


def test_every_kind_has_a_group(site):
    site("kinds", modules={"acme": GOOD}, **{kind: f"mine = acme:{kind}" for kind in discovery.GROUPS})
    for kind in ("algorithm", "format", "kernel", "adapter"):
        assert discovery.find(kind, "mine").entry_point.attr == kind


def test_an_unknown_name_gets_the_nearest_one(acme):
    with pytest.raises(PluginError) as caught:
        discovery.find("algorithm", "Halv")
    assert str(caught.value).startswith("no algorithm named 'Halv'; installed: ")
    assert str(caught.value).endswith(" Did you mean 'halve'?")


def test_where_nothing_is_installed(monkeypatch):
    monkeypatch.setattr(discovery, "entry_points", lambda group: ())
    with pytest.raises(PluginError, match=r"^no kernel named 'fast'; installed: none\.$"):
        discovery.find("kernel", "fast")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_names_the_distribution_and_its_version(fault, site, acme):
    source, attribute, message = FAULTS[fault]
    site("acme-broken", "0.3", modules={"acme_broken": source}, algorithm=f"broken = acme_broken:{attribute}")
    status = discovery.status(discovery.find("algorithm", "broken"))
    assert status.startswith(f"broken: algorithm 'broken' (acme-broken 0.3) {message}")
    assert discovery.status(discovery.find("algorithm", "halve")) == "ok", "its neighbour is not hurt"


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if "hook" not in fault])
def test_what_cannot_be_loaded_raises_when_it_is_asked_for(fault, site):
    source, attribute, message = FAULTS[fault]
    site("acme-broken", "0.3", modules={"acme_broken": source}, algorithm=f"broken = acme_broken:{attribute}")
    with pytest.raises(PluginError) as caught:
        discovery.load("algorithm", "broken")
    assert str(caught.value).startswith(f"algorithm 'broken' (acme-broken 0.3) {message}")


def test_a_name_claimed_by_two_distributions(site, acme):
    site("rival", "2.0", modules={"rival": GOOD}, algorithm="halve = rival:Halve\nthird = rival:Halve")
    message = "algorithm 'halve' is claimed by acme 1.2 and rival 2.0; uninstall one of them"
    for ask in (discovery.find, discovery.load):
        with pytest.raises(PluginError) as caught:
            ask("algorithm", "halve")
        assert str(caught.value) == message
    assert discovery.status(discovery.installed("algorithm")["halve"]) == f"conflict: {message}"
    assert discovery.status(discovery.find("algorithm", "third")) == "ok", "its other names are not hurt"


def test_the_same_distribution_seen_twice_is_one(site):
    for _ in range(2):
        site("acme", "1.2", modules={"acme": GOOD}, algorithm="halve = acme:Halve")
    assert discovery.status(discovery.find("algorithm", "halve")) == "ok"
