"""The journal: what is finished stays finished, what is not ours stays untouched."""

import json
import subprocess
import sys

import numpy as np
import pytest

from gs_core import OutputError
from gs_core.arrays import from_raw
from gs_core.journal import FOLDER, RECORDS, REPORT, RUN, Activations, Journal
from gs_core.storage import file_digest, write_json, write_text
from gs_core.storage.writer import BEGUN

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
    write_text(journal.out / name, content)
    journal.record(part, [name])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


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


@pytest.mark.parametrize("damage", [lambda p: p.write_text("short"), lambda p: p.unlink(), flip_a_bit])
def test_a_part_whose_file_has_changed_is_done_again_with_all_that_follow(damage, out):
    journal = opened(out)
    for part in range(3):
        finish_part(journal, part)
    damage(out / "model-1.safetensors")
    assert [record["part"] for record in opened(out).records] == [0]


@pytest.mark.parametrize(
    "damage",
    [
        lambda lines: lines[1:],
        lambda lines: [lines[0], lines[2]],
        lambda lines: [lines[0], lines[1], lines[1], lines[2]],
        lambda lines: [*lines, lines[2]],
        lambda lines: [lines[1], lines[0], lines[2]],
        lambda lines: [lines[0], b"\xff\xfe\x00", lines[2]],
        lambda lines: [lines[0], b"[1, 2]", lines[2]],
        lambda lines: [lines[0], b"7", lines[2]],
        lambda lines: [lines[0], b"[" * 10**5, lines[2]],
        lambda lines: [lines[0], b'{"part": 1}', lines[2]],
        lambda lines: [lines[0], lines[1].replace(b"model-1", b"model-0"), lines[2]],
        lambda lines: [b"\x80\x04\x95 binary"],
    ],
    ids=["first deleted", "middle deleted", "doubled", "last doubled", "exchanged", "not UTF-8", "a list", "a number",
         "deep", "without files", "changed", "binary"],
)  # fmt: skip
def test_a_damaged_journal_is_refused_and_can_be_restarted(damage, out):
    journal = opened(out)
    for part in range(3):
        finish_part(journal, part)
    path = out / FOLDER / RECORDS
    path.write_bytes(b"\n".join(damage(path.read_bytes().splitlines())) + b"\n")
    before = contents(out)
    with pytest.raises(OutputError, match=r"line [123456] is not the record of part .*Pass `restart=` to begin again"):
        Journal(out, ME)
    assert contents(out) == before
    assert opened(out, restart=True).records == []
    assert sorted(contents(out)) == [f"{FOLDER}/{RUN}"]


def test_a_journal_of_another_run_is_refused(out, tmp_path):
    for folder, model in ((out, "abc"), (tmp_path / "other", "def")):
        finish_part(opened(folder, ME | {"model": model}), 0)
    (out / FOLDER / RECORDS).write_bytes((tmp_path / "other" / FOLDER / RECORDS).read_bytes())
    with pytest.raises(OutputError, match="line 1 is not the record of part 0"):
        Journal(out, ME)


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
    with pytest.raises(OutputError, match=r"is not empty .* and has no unfinished run\. Choose another folder$"):
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
    with pytest.raises(OutputError, match=rf"It has a finished run \({REPORT}\)"):
        Journal(out, ME)


@pytest.mark.parametrize("garbage", [b"{nonsense", b"[]", b"7", b"null", b"\xff\xfe", b"[" * 10**5])
def test_a_run_that_was_identified_by_garbage(garbage, out):
    opened(out)
    (out / FOLDER / RUN).write_bytes(garbage)
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
    finish_part(journal, 0)
    assert len(opened(out, ME | {"model": "def"}).records) == 1


def test_restart_replaces_a_finished_run(out):
    finished_run(out)
    opened(out, restart=True)
    assert sorted(contents(out)) == [f"{FOLDER}/{RUN}"]


def finished_run(out):
    """A folder with a shard, a config and their report."""
    journal = opened(out)
    finish_part(journal, 0)
    write_json(out / "config.json", {})
    digests = {name: file_digest(out / name) for name in ("model-0.safetensors", "config.json")}
    write_json(out / REPORT, {"files": [*digests, REPORT], "sha256": digests})
    journal.finish()


def test_restart_refuses_a_finished_run_with_a_file_that_the_user_changed(out):
    finished_run(out)
    (out / "config.json").write_text("edited")
    before = contents(out)
    with pytest.raises(OutputError, match=r"config\.json was changed after the finished run.*Move the file away"):
        Journal(out, ME, restart=True)
    assert contents(out) == before


def test_restart_removes_no_file_that_a_planted_report_lists(out):
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    (out / REPORT).write_text(json.dumps({"files": ["thesis.tex", REPORT], "sha256": {"thesis.tex": "0" * 64}}))
    before = contents(out)
    with pytest.raises(OutputError, match=r"thesis\.tex was changed after the finished run"):
        Journal(out, ME, restart=True)
    assert contents(out) == before


def test_restart_of_a_run_that_was_killed_while_it_wrote(out):
    """One file is half written, one is written but not recorded yet; a third is the user's."""
    finish_part(opened(out), 0)
    write_text(out / "model-1.safetensors", "whole")
    (out / FOLDER / "model-2.safetensors.partial").write_text("ha")
    (out / "thesis.partial").write_text("years of work")
    assert opened(out, ME | {"model": "def"}, restart=True).records == []
    assert sorted(contents(out)) == [f"{FOLDER}/{RUN}", "thesis.partial"]


def test_a_file_that_a_killed_run_left_half_written_is_written_again(out):
    opened(out)
    (out / FOLDER / "model-0.safetensors.partial").write_text("ha")
    finish_part(opened(out), 0)
    assert (out / "model-0.safetensors").read_text() == "weights"


def test_a_planted_symlink_is_not_written_through(out, tmp_path):
    (tmp_path / "precious").write_text("mine")
    finish_part(opened(out), 0)
    for link in (out / "config.json.partial", out / FOLDER / "config.json.partial", out / FOLDER / "begun.partial"):
        link.symlink_to(tmp_path / "precious")
    opened(out)
    write_json(out / "config.json", {})
    assert (tmp_path / "precious").read_text() == "mine"
    assert (out / "config.json").read_text() == "{}\n"


def test_a_run_does_not_replace_a_file_that_it_did_not_write(out, tmp_path):
    """A file of the user appears in the folder during the run."""
    journal = opened(out)
    (out / "model-0.safetensors").write_text("the user's")
    with pytest.raises(OutputError, match=r"model-0\.safetensors exists, and this run did not write it\. Move it away"):
        finish_part(journal, 0)
    assert (out / "model-0.safetensors").read_text() == "the user's"
    opened(out, restart=True)
    assert (out / "model-0.safetensors").read_text() == "the user's"


def test_a_journal_folder_that_is_a_symlink_is_refused(out, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "x.partial").write_text("mine")
    out.mkdir()
    (out / FOLDER).symlink_to(tmp_path / "elsewhere")
    for restart in (False, True):
        with pytest.raises(OutputError, match="is not a folder; remove it"):
            Journal(out, ME, restart)
    assert (tmp_path / "elsewhere" / "x.partial").read_text() == "mine"


def test_restart_removes_no_file_that_a_forged_record_names(out, tmp_path):
    (tmp_path / "precious").write_text("mine")
    journal, digest = opened(out), file_digest(tmp_path / "precious")
    for name in ("../precious", str(tmp_path / "precious")):
        (out / FOLDER / BEGUN).write_text(json.dumps(name))
        journal = opened(out, restart=True)
        assert (tmp_path / "precious").read_text() == "mine"
    journal.finish()
    for name in ("../precious", str(tmp_path / "precious")):
        (out / REPORT).write_text(json.dumps({"files": [name], "sha256": {name: digest}}))
        with pytest.raises(OutputError, match="is not a report of this program"):
            Journal(out, ME, restart=True)
        assert (tmp_path / "precious").read_text() == "mine"


@pytest.mark.parametrize(
    "report", ["{nonsense", "[]", '{"sha256": 3}', '{"sha256": [3]}', '{"sha256": {"": ""}}', "[" * 10**5]
)
def test_restart_over_a_report_that_is_not_ours(report, out):
    out.mkdir()
    (out / REPORT).write_text(report)
    (out / "data").write_text("mine")
    before = contents(out)
    with pytest.raises(OutputError, match=r"is not a report of this program\. Nothing was removed"):
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


def test_a_damaged_activation_means_that_all_parts_are_repeated_with_a_message(out, caplog):
    """The activations of earlier blocks were discarded."""
    journal = opened(out)
    for part in range(2):
        Activations(journal, part).write(0, {"hidden": np.ones(64, np.float32)})
        name = f"model-{part}.safetensors"
        write_text(out / name, "weights")
        journal.record(part, [name], streams=[str(part)])
    Activations(journal, 0).discard()
    assert len(opened(out).records) == 2
    flip_a_bit(Activations(journal, 1).folder / "0.safetensors")
    assert opened(out).records == []
    assert (
        "1/0.safetensors is missing or damaged (its sha256 differs). Part 0 and the parts after it are repeated"
        in caplog.text
    )


def test_a_damaged_shard_is_reported(out, caplog):
    journal = opened(out)
    for part in range(3):
        finish_part(journal, part)
    flip_a_bit(out / "model-1.safetensors")
    opened(out)
    assert "model-1.safetensors is missing, or its sha256 differs" in caplog.text
    assert "Part 1 and the parts after it are repeated" in caplog.text


def test_activations_are_intact_until_a_bit_flips(out):
    written = Activations(opened(out), 0, "-gradient")
    written.write(0, {"hidden": np.ones(64, np.float32)})
    assert Activations(opened(out), 0, "-gradient").are_intact(1)
    assert not Activations(opened(out), 0, "-gradient").are_intact(2)
    flip_a_bit(written.folder / "0.safetensors")
    assert not Activations(opened(out), 0, "-gradient").are_intact(1)
