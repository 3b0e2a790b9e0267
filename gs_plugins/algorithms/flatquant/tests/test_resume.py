"""A run that was interrupted while it learned ends with the bytes of one that was left alone."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from gs_core import Recipe, hookimpl, quantize
from gs_core.testing import ToyAdapter, write_distribution, write_toy

RECIPE = {
    "scheme": {
        "weights": {"format": "int4", "granularity": "channel"},
        "inputs": {"format": "int4", "granularity": "token", "dynamic": True},
    },
    "format": "kit_plain",
}
OPTIONS = {"epochs": 2, "cali_bsz": 2, "lac": True}


class Trip(Exception):
    pass


class Tripwire:
    """Raises at one call of ``smooth`` or ``quantize``, before or after it."""

    def __init__(self, at: int, after: bool):
        self.at, self.after, self.calls = at, after, 0

    def _around(self):
        self.calls += 1
        if self.calls == self.at and not self.after:
            raise Trip
        answer = yield
        if self.calls == self.at:
            raise Trip
        return answer

    @hookimpl(wrapper=True)
    def smooth(self):
        return (yield from self._around())

    @hookimpl(wrapper=True)
    def quantize(self):
        return (yield from self._around())


@pytest.fixture
def run(tmp_path, monkeypatch):
    home = write_distribution(tmp_path / "site", "kit", "0.1", format="kit_plain = gs_core.testing.plugins:Plain")
    monkeypatch.setattr(sys, "path", [str(home), *sys.path])
    toy = write_toy(tmp_path / "toy", blocks=3, hidden=32, intermediate=48)
    tokens = np.random.default_rng(0).integers(0, 256, (6, 16))

    def quantized(out: Path, options=OPTIONS, **more):
        recipe = Recipe.parse(RECIPE | {"algorithms": [{"flatquant": options}]})
        given = {"calibration": tokens, "samples": 6, "seq_len": 16, "adapter": ToyAdapter(torch.asarray)}
        return quantize(toy, recipe, out, **given, **more)

    return quantized


def contents(folder: Path):
    found = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    report = json.loads(found.pop("gsq_report.json"))
    del report["run"]
    return found, report


@pytest.mark.parametrize("after", [False, True])
def test_interrupted_anywhere_it_writes_the_same_bytes(run, tmp_path, after):
    run(tmp_path / "alone")
    found, report = contents(tmp_path / "alone")
    assert [r["block"] for r in report["records"]] == ["blocks.0", "blocks.1", "blocks.2"]
    assert any("online" in name for name in json.loads(found["config.json"])["quantization_config"])
    for at in (1, 3, 4, 6):
        out = tmp_path / f"{at}"
        with pytest.raises(Trip):
            run(out, plugins=[Tripwire(at, after)])
        run(out)
        assert contents(out) == (found, report), at


def test_matrices_that_were_saved_make_the_same_model(run, tmp_path):
    run(tmp_path / "learned", OPTIONS | {"save_matrices": str(tmp_path / "flat")})
    run(tmp_path / "loaded", {"load_matrices": str(tmp_path / "flat"), "lac": True})
    (learned, _), (loaded, report) = contents(tmp_path / "learned"), contents(tmp_path / "loaded")
    assert loaded == learned
    assert report["records"] == []
