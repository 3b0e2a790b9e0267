"""The report: everything that happened, plain, and the same for the same input but for its ``run``."""

import json

from gs_core.report import Report
from gs_core.storage import Checkpoint


def test_it_says_what_was_done_to_every_layer(run, toy, tmp_path):
    report = run(ignore=["lm_head", "*.o", "nothing.like.it"])
    assert json.loads((tmp_path / "out" / "gsq_report.json").read_text()) == report.data
    data = report.data
    assert data["model"] == "toy"
    assert data["recipe"]["algorithms"] == [{"name": "round"}]
    assert data["plugins"] == {"algorithm round": "kit-plugins 0.9", "format plain": "kit-plugins 0.9"}
    assert data["schemes"] == {"w int4 group 32": 18}
    assert [row["layer"] for row in data["kept_in_float"]] == ["blocks.0.o", "blocks.1.o", "blocks.2.o", "lm_head"]
    assert data["notes"] == ["ignore 'nothing.like.it' matches nothing in this model"]
    assert len(report.layers) == 18
    assert set(report.layers[0]) == {
        *("layer", "shape", "scheme", "algorithms", "error", "error_of", "tokens"),
    }


def test_sizes_are_those_of_the_weights(run, toy, tmp_path):
    data = run().data
    assert data["bytes_before"] == Checkpoint(toy).nbytes
    shards = list((tmp_path / "out").glob("*.safetensors"))
    assert data["bytes_after"] == sum(path.stat().st_size for path in shards)
    assert sorted(data["files"]) == sorted(path.name for path in (tmp_path / "out").iterdir())


def test_only_run_differs_between_runs(run, tmp_path):
    one, other = (run(out=tmp_path / name).data for name in ("one", "other"))
    ran = one.pop("run")
    other.pop("run")
    assert one == other
    assert set(ran) == {"seconds", "seconds_of_this_process", "peak_memory_bytes"}
    assert ran["seconds_of_this_process"] >= ran["seconds"] > 0


def test_the_worst_layers_come_first(tmp_path):
    layers = [{"layer": str(number), "error": error} for number, error in enumerate([0.1, 0.5, 0.0, 0.3])]
    assert [row["error"] for row in Report(tmp_path, {"layers": layers}).worst(2)] == [0.5, 0.3]
