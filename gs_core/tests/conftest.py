"""Fixtures of the core's tests: a toy to quantize, and the kit's plugins as if they were installed."""

import json
import os
import sys
from functools import cache

import numpy as np
import pytest
from hypothesis import settings

# In a checkout pytest names these files `gs_core.tests…`, and puts the folder above in the place of the package.
if "gs_core" in sys.modules and getattr(sys.modules["gs_core"], "__file__", None) is None:
    del sys.modules["gs_core"]

from gs_core import api, discovery, hookimpl
from gs_core.testing import ToyAdapter, write_distribution, write_toy
from gs_schemas import Recipe

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
def alone(tmp_path, monkeypatch):
    """Nothing is installed but the core and what ``site`` installs."""
    real = discovery.entry_points

    @cache
    def points(group, path):
        found = real(group=group)
        return [p for p in found if p.dist.name == "golden-stick-core" or tmp_path in p.dist.locate_file("x").parents]

    def visible(group):
        return points(group, tuple(sys.path))  # reading what is installed takes longer than most tests

    monkeypatch.setattr(discovery, "entry_points", visible)


@pytest.fixture
def plugins(site, alone):
    """The kit's smallest plugins: algorithms ``round``, ``level``, ``centre`` and ``turn``, format ``plain``."""
    home = "gs_core.testing.plugins"
    return site(
        "kit-plugins",
        "0.9",
        algorithm=f"round = {home}:Rounding\nlevel = {home}:Levelling\ncentre = {home}:Centring\nturn = {home}:Turning",
        format=f"plain = {home}:Plain",
    )


INT4 = {"weights": {"format": "int4", "granularity": "group", "group_size": 32}}


@pytest.fixture
def run(toy, tokens, plugins, tmp_path):
    """Quantize the toy into ``out``: ``run(algorithms=[...], scheme=...)``. Other keywords go to ``quantize``."""

    def quantize(source=toy, out=tmp_path / "out", **given):
        fields = {
            name: given.pop(name) for name in list(given) if name in Recipe.model_fields and name != "calibration"
        }
        recipe = Recipe.parse({"scheme": INT4, "algorithms": ["round"], "format": "plain"} | fields)
        samples, seq_len = tokens.shape
        given = {"calibration": tokens, "samples": samples, "seq_len": seq_len, "adapter": ToyAdapter()} | given
        return api.quantize(source, recipe, out, **given)

    return quantize


@pytest.fixture
def contents():
    """Every file below a folder by its path, but for what the report says of this one run."""

    def read(folder):
        found = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        if "gsq_report.json" in found:
            report = json.loads(found["gsq_report.json"])
            del report["run"]
            found["gsq_report.json"] = report
        return found

    return read


@pytest.fixture
def goes_on(run, tmp_path, contents):
    """Check that a run which is cut short in its third block goes on to the bytes of one that is not."""

    class Stop(Exception):
        pass

    class Stopping:
        blocks = 0

        @hookimpl(wrapper=True)
        def export(self):
            self.blocks += 1
            if self.blocks == 3:
                raise Stop
            return (yield)

    def check(**recipe):
        run(out=tmp_path / "whole", **recipe)
        with pytest.raises(Stop):
            run(out=tmp_path / "cut", plugins=[Stopping()], **recipe)
        run(out=tmp_path / "cut", **recipe)
        assert contents(tmp_path / "cut") == contents(tmp_path / "whole")

    return check
