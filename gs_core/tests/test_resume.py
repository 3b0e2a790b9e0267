"""Interrupted anywhere and started again, a run writes the same bytes as one that was left alone."""

import errno
import os
import shutil

import pytest

from gs_core import OutputError, hookimpl
from gs_core.testing import write_toy

LINE = {"algorithms": ["level", "round"], "scheme": "W8A8_STATIC"}


@pytest.fixture
def tiny(tmp_path):
    """The smallest toy: what is tried here is tried at every step of a run."""
    return write_toy(tmp_path / "tiny", blocks=2, hidden=16, intermediate=16, heads=2, vocabulary=256)


@pytest.fixture
def left_alone(run, tiny, tmp_path, contents):
    """What an undisturbed run writes."""
    run(tiny, tmp_path / "left_alone", **LINE)
    return contents(tmp_path / "left_alone")


class Trip(Exception):
    pass


class Tripwire:
    """A wrapper around every stage that raises at one call, before or after it."""

    def __init__(self, at=None, after=False):
        self.at, self.after, self.calls = at, after, []

    def _around(self, hook):
        mine = len(self.calls) == self.at
        self.calls.append(hook)
        if mine and not self.after:
            raise Trip
        answer = yield
        if mine:
            raise Trip
        return answer

    @hookimpl(wrapper=True)
    def observe(self):
        return (yield from self._around("observe"))

    @hookimpl(wrapper=True)
    def smooth(self):
        return (yield from self._around("smooth"))

    @hookimpl(wrapper=True)
    def quantize(self):
        return (yield from self._around("quantize"))

    @hookimpl(wrapper=True)
    def pack(self):
        return (yield from self._around("pack"))

    @hookimpl(wrapper=True)
    def export(self):
        return (yield from self._around("export"))


@pytest.mark.parametrize("after", [False, True])
def test_a_failure_in_any_stage(after, run, tiny, left_alone, contents, tmp_path):
    counting = Tripwire()
    run(tiny, tmp_path / "counted", plugins=[counting], **LINE)
    assert set(counting.calls) == {"observe", "smooth", "quantize", "pack", "export"}
    for at, hook in enumerate(counting.calls):
        if after and hook != "export":
            continue  # nothing is kept between the other stages: after one is before the next
        if hook == counting.calls[at - 1]:
            continue  # nor between one site or layer and the next
        out = tmp_path / f"at-{at}"
        with pytest.raises(Trip):
            run(tiny, out, plugins=[Tripwire(at, after)], **LINE)
        run(tiny, out, **LINE)
        assert contents(out) == left_alone, (at, hook)


@pytest.mark.parametrize("algorithms", [["level", "round"], ["centre"]], ids=["one stream", "two streams"])
def test_a_kill_before_any_file_gets_its_name(algorithms, run, tiny, contents, tmp_path, monkeypatch):
    """The folder as a killed process leaves it, with nothing tidied up: half-written files, missing records."""
    replace, killed, line = os.replace, [], LINE | {"algorithms": algorithms}

    def snapshot(source, target):
        killed.append(tmp_path / f"killed-{len(killed)}")
        shutil.copytree(tmp_path / "running", killed[-1])
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", snapshot)
        run(tiny, tmp_path / "running", **line)
    assert len(killed) > 8
    left_alone = contents(tmp_path / "running")
    for out in killed:
        run(tiny, out, **line)
        assert contents(out) == left_alone, out.name


def test_a_full_disk_at_any_file(run, tiny, left_alone, contents, tmp_path, monkeypatch):
    """Every write ends with an fsync: the disk has room for so many of them."""
    room = float("inf")
    written = []

    def fsync(handle):
        if len(written) >= room:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    run(tiny, tmp_path / "counted", **LINE)
    total = len(written)
    for room in range(0, total - 1, 5):  # the very last one is for a folder that is complete
        out = tmp_path / f"room-for-{room}"
        written.clear()
        with pytest.raises(OutputError, match=r"the disk is full|No space left") as caught:
            run(tiny, out, **LINE)
        assert "\n" not in str(caught.value)
        written.clear()
        room = float("inf")
        run(tiny, out, **LINE)
        assert contents(out) == left_alone, out.name


def test_finished_blocks_are_not_done_again(run, tiny, tmp_path):
    with pytest.raises(Trip):
        run(tiny, plugins=[Tripwire(at=20)], **LINE)  # in the second block
    started = []
    run(tiny, progress=lambda stage, block, blocks: started.append((stage, block)), **LINE)
    assert started[0] == ("load", 1)


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "algorithms", [["level", "round"], ["centre"], ["round"]], ids=["one", "two streams", "no data"]
)
@pytest.mark.parametrize("damaged", ["model-00001*", "model-00002*", ".gsq/activations/1*/0.safetensors"])
def test_a_bit_flip_between_two_runs_does_not_change_the_output(
    damaged, algorithms, run, toy, tmp_path, contents, caplog
):
    line = LINE | {"algorithms": algorithms, "scheme": "W8A16" if algorithms == ["round"] else "W8A8_STATIC"}
    run(toy, tmp_path / "left_alone", **line)
    with pytest.raises(Trip):
        run(toy, plugins=[Tripwire(at=_first_call_of_block(2, run, toy, tmp_path, line))], **line)
    found = sorted((tmp_path / "out").glob(damaged))
    assert found or algorithms == ["round"]
    for path in found:
        flip_a_bit(path)
    run(toy, **line)
    assert contents(tmp_path / "out") == contents(tmp_path / "left_alone")
    assert ("sha256 differs" in caplog.text) == bool(found)


def _first_call_of_block(block, run, toy, tmp_path, line):
    """The number of the first stage after so many blocks were exported."""
    counting = Tripwire()
    run(toy, tmp_path / "counted", plugins=[counting], **line)
    exports = [number for number, hook in enumerate(counting.calls) if hook == "export"]
    return exports[block - 1] + 1


def test_a_deleted_line_of_the_journal_stops_the_run(run, toy, tmp_path):
    line = LINE | {"algorithms": ["round"], "scheme": "W8A16"}
    with pytest.raises(Trip):
        run(toy, plugins=[Tripwire(at=_first_call_of_block(2, run, toy, tmp_path, line))], **line)
    journal = tmp_path / "out" / ".gsq" / "journal.jsonl"
    first, second = journal.read_bytes().splitlines(keepends=True)
    for damaged in (second, first + first, first + first + second):
        journal.write_bytes(damaged)
        with pytest.raises(OutputError, match="is not the record of part"):
            run(toy, **line)
    run(toy, restart=True, **line)


def test_a_run_that_changed_is_not_gone_on_with(run, tiny, tmp_path, tokens, monkeypatch):
    with pytest.raises(Trip):
        run(tiny, plugins=[Tripwire(at=20)], **LINE)
    write_toy(tmp_path / "other", blocks=2, hidden=16, intermediate=16, heads=2, seed=1)
    changes = {
        "recipe": {**LINE, "ignore": ["*.o"]},
        "model": {**LINE, "source": tmp_path / "other"},
        "calibration": {**LINE, "calibration": tokens[:, ::-1]},
    }
    for name, change in changes.items():
        with pytest.raises(OutputError, match=f"holds an unfinished run with another {name}; finish that one"):
            run(**{"source": tiny} | change)
    with monkeypatch.context() as other, pytest.raises(OutputError, match="another batch size; finish that one"):
        other.setattr("gs_core.calibration.tokens.TOKENS_PER_BATCH", 4)  # block outputs are saved batch by batch
        run(tiny, **LINE)
    run(tiny, **LINE)


def test_a_finished_folder_is_refused_and_can_be_replaced(run, tiny, left_alone, contents, tmp_path):
    run(tiny, **LINE)
    with pytest.raises(OutputError, match="It has a finished run"):
        run(tiny, **LINE)
    assert contents(tmp_path / "out") == left_alone
    run(tiny, restart=True, scheme="W8A16")
    assert contents(tmp_path / "out") != left_alone
    run(tiny, restart=True, **LINE)
    assert contents(tmp_path / "out") == left_alone
