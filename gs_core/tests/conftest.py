"""Fixtures of the core's tests: a toy to quantize, and the kit's plugins as if they were installed."""

import os

import numpy as np
import pytest
from hypothesis import settings

from gs_core.testing import write_distribution, write_toy

settings.register_profile("quick", max_examples=40, deadline=None, database=None, derandomize=True)
settings.load_profile("quick")


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    """What survives a power cut is not seen from here; a busy disk would only make the tests slow."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture
def toy(tmp_path):
    """A toy of three blocks, in two shards, whose groups of 32 divide every layer."""
    return write_toy(tmp_path / "toy", shards=2, blocks=3, hidden=64, intermediate=96)


@pytest.fixture
def tokens():
    """Calibration tokens, ``(8, 24)``."""
    return np.random.default_rng(0).integers(0, 256, (8, 24))


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder on ``sys.path`` to install distributions into: ``site(name, version, ...)``."""
    count = iter(range(100))

    def install(*arguments, **keywords):
        folder = write_distribution(tmp_path / f"site-{next(count)}", *arguments, **keywords)
        monkeypatch.syspath_prepend(folder)
        return folder

    return install


@pytest.fixture
def plugins(site):
    """The kit's smallest plugins by name: algorithms ``round`` and ``level``, format ``plain``."""
    home = "gs_core.testing.plugins"
    return site(
        "kit-plugins", "0.9", algorithm=f"round = {home}:Rounding\nlevel = {home}:Levelling", format=f"plain = {home}:Plain"
    )
