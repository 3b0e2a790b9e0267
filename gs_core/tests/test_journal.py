"""The journal: what is finished stays finished, what is not ours stays untouched."""

import json
import subprocess
import sys

import numpy as np
import pytest

from gs_core import OutputError
from gs_core.arrays import from_raw
from gs_core.journal import FOLDER, RECORDS, REPORT, RUN, Activations, Journal

ME = {"recipe": {"scheme": "W4A16"}, "model": "abc", "calibration": None}


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def opened(out, run=ME, **keywords):
    """Open a journal as a process does that ends at once."""
    journal = Journal(out, run, **keywords)
    journal.close()
    return journal


def finish_part(journal, part, content="weights"):
    name = f"model-{part}.safetensors"
    (journal.out / name).write_text(content)
    journal.record({"part": part, "files": {name: len(content)}})


def contents(folder):
    """Every file below, by its path."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# --- going on ------------------------------------------------------------------------------------------------


def test_finished_parts_are_found_again(out):
    journal = opened(out)
    assert journal.records == []
    for part in range(3):
        finish_part(journal, part)
    assert [record["part"] for record in opened(out).records] == [0, 1, 2]
    assert opened(out).records == journal.records


def test_a_torn_last_line_is_a_part_to_do_again(out):
    journal = opened(out)
    for part in range(3):
        finish_part(journal, part)
    path = out / FOLDER / RECORDS
    text = path.read_text()
    for cut in range(1, len(text.splitlines()[-1])):
        path.write_text(text[: -cut - 1])
        assert [record["part"] for record in opened(out).records] == [0, 1], text[: -cut - 1]


@pytest.mark.parametrize("damage", [lambda p: p.write_text("short"), lambda p: p.unlink()])
def test_a_part_whose_file_has_changed_is_done_again_with_all_that_follow(damage, out):
    journal = opened(out)
    for part in range(3):
        finish_part(journal, part)
    damage(out / "model-1.safetensors")
    assert [record["part"] for record in opened(out).records] == [0]


def test_a_part_done_again_takes_the_place_of_the_old_records(out):
    journal = opened(out)
    for part in range(3):
        finish_part(journal, part)
    (out / "model-1.safetensors").unlink()
    again = opened(out)
    finish_part(again, 1, "other weights")
    assert [record["part"] for record in opened(out).records] == [0, 1]


def test_a_finished_run_leaves_no_journal(out):
    journal = opened(out)
    finish_part(journal, 0)
    journal.finish()
    assert [path.name for path in out.iterdir()] == ["model-0.safetensors"]


def test_records_are_replaced_never_written_into(out, monkeypatch):
    """Killed while it writes, the old journal is still whole."""
    journal = opened(out)
    finish_part(journal, 0)
    before = (out / FOLDER / RECORDS).read_bytes()
    monkeypatch.setattr("os.replace", lambda a, b: (_ for _ in ()).throw(OSError(5, "Input/output error")))
    with pytest.raises(OutputError, match="Input/output error"):
        finish_part(journal, 1)
    assert (out / FOLDER / RECORDS).read_bytes() == before


# --- whose folder --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("restart", [False, True])
def test_a_foreign_folder_is_refused_and_untouched(restart, out):
    (out / "sub").mkdir(parents=True)
    (out / "thesis.tex").write_text("years of work")
    (out / "sub" / "data").write_text("more")
    before = contents(out)
    with pytest.raises(OutputError, match=r"is not empty .* and no unfinished run of ours"):
        Journal(out, ME, restart)
    assert contents(out) == before


@pytest.mark.parametrize(
    ("field", "value"), [("recipe", {"scheme": "W8A8"}), ("model", "def"), ("calibration", "123"), ("new", 1)]
)
def test_another_run_is_refused_and_the_difference_named(field, value, out):
    finish_part(opened(out), 0)
    before = contents(out)
    with pytest.raises(OutputError, match=f"unfinished run with another {field}; finish that one"):
        Journal(out, ME | {field: value})
    assert contents(out) == before


def test_a_finished_run_is_refused_and_said_to_be_one(out):
    journal = opened(out)
    (out / REPORT).write_text('{"files": []}')
    journal.finish()
    with pytest.raises(OutputError, match=f"It holds a finished run: {REPORT} is there"):
        Journal(out, ME)


def test_a_run_that_was_identified_by_garbage(out):
    opened(out)
    (out / FOLDER / RUN).write_text("{nonsense")
    with pytest.raises(OutputError, match=RUN):
        Journal(out, ME)
    assert opened(out, restart=True).records == []


@pytest.mark.parametrize("kind", ["file", "under a file"])
def test_a_place_where_no_folder_can_be(kind, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot use"):
        Journal(tmp_path / "file" / ("" if kind == "file" else "out"), ME)


def test_a_folder_is_for_one_process_at_a_time(out):
    held = "import sys; from pathlib import Path; from gs_core.journal import Journal; "
    held += "j = Journal(Path(sys.argv[1]), {'model': 'other'}); print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", held, str(out)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        for restart in (False, True):
            with pytest.raises(OutputError, match="is being written by another run"):
                Journal(out, ME, restart)
        assert json.loads((out / FOLDER / RUN).read_text()) == {"model": "other"}
        other.stdin.close()
    assert opened(out, {"model": "other"}).records == []


# --- restart -------------------------------------------------------------------------------------------------


def test_restart_removes_what_the_run_wrote_and_nothing_else(out):
    finish_part(opened(out), 0)
    (out / "notes.txt").write_text("the user's")
    journal = opened(out, ME | {"model": "def"}, restart=True)
    assert journal.records == []
    assert sorted(contents(out)) == [f"{FOLDER}/{RUN}", "notes.txt"]


def test_restart_replaces_a_finished_run(out):
    journal = opened(out)
    finish_part(journal, 0)
    (out / "config.json").write_text("{}")
    (out / REPORT).write_text(json.dumps({"files": ["model-0.safetensors", "config.json", REPORT]}))
    journal.finish()
    opened(out, restart=True)
    assert sorted(contents(out)) == [f"{FOLDER}/{RUN}"]


def test_restart_of_a_run_that_was_killed_while_it_wrote(out):
    """A file half written, and one that was written but not recorded yet."""
    finish_part(opened(out), 0)
    (out / "model-1.safetensors").write_text("whole")
    (out / "model-2.safetensors.partial").write_text("ha")
    assert opened(out, ME | {"model": "def"}, restart=True).records == []
    assert "model-2.safetensors.partial" not in contents(out)


def test_restart_removes_no_file_that_a_forged_record_names(out, tmp_path):
    (tmp_path / "precious").write_text("mine")
    journal = opened(out)
    (out / FOLDER / RECORDS).write_text(json.dumps({"files": {"../precious": 4, str(tmp_path / "precious"): 4}}) + "\n")
    opened(out, restart=True)
    assert (tmp_path / "precious").read_text() == "mine"
    journal.finish()
    (out / REPORT).write_text(json.dumps({"files": ["../precious", str(tmp_path / "precious")]}))
    opened(out, restart=True)
    assert (tmp_path / "precious").read_text() == "mine"


@pytest.mark.parametrize("report", ["{nonsense", "[]", '{"files": 3}', '{"files": [3]}'])
def test_restart_over_a_report_that_is_not_ours(report, out):
    out.mkdir()
    (out / REPORT).write_text(report)
    (out / "data").write_text("mine")
    before = contents(out)
    with pytest.raises(OutputError, match="is not a report of ours; nothing was removed"):
        Journal(out, ME, restart=True)
    assert contents(out) == before


# --- activations ---------------------------------------------------------------------------------------------


def test_activations_wait_on_disk_between_blocks(out):
    journal = opened(out)
    waiting = Activations(journal, 3)
    for batch in range(2):
        waiting.write(batch, {"hidden": np.full((2, 4, 3), batch, np.float32), "length": np.array([1])})
    arrays = Activations(opened(out), 3).read(1)
    assert {name: from_raw(raw).tolist() for name, raw in arrays.items()}["length"] == [1]
    assert (from_raw(arrays["hidden"]) == 1).all()
    waiting.discard()
    waiting.discard()
    assert not waiting.folder.exists()
