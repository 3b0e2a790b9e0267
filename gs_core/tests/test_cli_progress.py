"""How far a run is: a line that is redrawn in a terminal, plain lines elsewhere."""

import io
import os
import re
import subprocess
import sys

import pytest
from rich.console import Console

from gs_core.cli import progress
from gs_core.cli.live import LiveLine
from gs_core.cli.progress import PlainLines, memory, watching


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when the test says so."""

    class Clock:
        now = 100.0

        def monotonic(self):
            return self.now

    found = Clock()
    monkeypatch.setattr(progress, "time", found)
    return found


def run(watcher, clock, first: int, blocks: int, seconds: float):
    """Work on blocks as the pipeline does, each taking so many seconds."""
    for block in range(first, blocks):
        for stage in ("load", "quantize", "export"):
            watcher(stage, block, blocks)
            clock.now += seconds / 3
    watcher("export", blocks, blocks)


def lines(captured) -> list[str]:
    """What was printed to stderr, without the memory, which is this process's."""
    assert captured.out == ""
    return [re.sub(r"memory [\d.]+ \wiB \(peak [\d.]+ \wiB\)", "memory M", line) for line in captured.err.splitlines()]


class TestPlainLines:
    def test_one_line_when_a_block_is_finished(self, clock, capsys):
        with PlainLines("opening the model") as watcher:
            run(watcher, clock, 0, 3, seconds=90)
        assert lines(capsys.readouterr()) == [
            "opening the model",
            "block 1 of 3: 1 min 30 s, memory M, 3 min 00 s left",
            "block 2 of 3: 1 min 30 s, memory M, 1 min 30 s left",
            "block 3 of 3: 1 min 30 s, memory M",
        ]

    def test_no_control_characters(self, clock, capsys):
        with PlainLines("opening") as watcher:
            run(watcher, clock, 0, 3, seconds=1)
        assert all(line.isprintable() for line in capsys.readouterr().err.splitlines())

    def test_a_resumed_run_says_where_it_goes_on_and_counts_its_own_blocks_only(self, clock, capsys):
        with PlainLines("opening") as watcher:
            run(watcher, clock, 2, 4, seconds=6)
        assert lines(capsys.readouterr()) == [
            "opening",
            "resuming at block 3 of 4",
            "block 3 of 4: 6.0 s, memory M, 6.0 s left",
            "block 4 of 4: 6.0 s, memory M",
        ]

    def test_a_run_that_had_only_its_end_to_do(self, clock, capsys):
        with PlainLines("opening") as watcher:
            watcher("export", 4, 4)
        assert lines(capsys.readouterr()) == ["opening", "resuming after all 4 blocks"]

    def test_the_last_block_is_reported_when_nothing_lies_outside_the_blocks(self, clock, capsys):
        with PlainLines("opening") as watcher:
            watcher("load", 0, 1)
            clock.now += 2
        assert lines(capsys.readouterr())[-1] == "block 1 of 1: 2.0 s, memory M"

    def test_blocks_that_are_measured_first_are_counted_on_their_own(self, clock, capsys):
        with PlainLines("opening") as watcher:
            for block in range(2):
                watcher("measure", block, 2)
                clock.now += 3
            run(watcher, clock, 0, 2, seconds=6)
        assert lines(capsys.readouterr()) == [
            "opening",
            "measure 1 of 2: 3.0 s, memory M, 3.0 s left",
            "measure 2 of 2: 3.0 s, memory M",
            "block 1 of 2: 6.0 s, memory M, 6.0 s left",
            "block 2 of 2: 6.0 s, memory M",
        ]

    def test_a_plan_that_only_measures(self, clock, capsys):
        with PlainLines("opening") as watcher:
            watcher("measure", 0, 1)
            clock.now += 3
        assert lines(capsys.readouterr()) == ["opening", "measure 1 of 1: 3.0 s, memory M"]

    def test_a_block_that_failed_is_not_reported(self, clock, capsys):
        with pytest.raises(KeyboardInterrupt), PlainLines("opening") as watcher:
            watcher("load", 0, 2)
            watcher("load", 1, 2)
            raise KeyboardInterrupt
        assert [line[:7] for line in lines(capsys.readouterr())] == ["opening", "block 1"]

    def test_it_is_chosen_where_stderr_is_no_terminal(self, capsys):
        assert isinstance(watching("opening"), PlainLines)

    def test_and_in_a_terminal_that_cannot_redraw(self, monkeypatch, capsys):
        monkeypatch.setattr("sys.stderr.isatty", lambda: True)
        monkeypatch.setenv("TERM", "dumb")
        assert isinstance(watching("opening"), PlainLines)
        monkeypatch.setenv("TERM", "xterm")
        assert isinstance(watching("opening"), LiveLine)


class TestLiveLine:
    @pytest.fixture
    def console(self):
        return Console(file=io.StringIO(), force_terminal=True, width=80, color_system=None)

    def test_it_shows_stage_blocks_memory_and_time_left(self, clock, console):
        with LiveLine("opening", console) as watcher:
            watcher("observe", 0, 4)
            clock.now += 40
            watcher("smooth", 1, 4)
            clock.now += 10
            (line,) = drawn(watcher)
        assert re.search(r" smooth .* 1/4  memory [\d.]+ \wiB \(peak [\d.]+ \wiB\)  1 min 50 s left$", line)

    def test_before_the_first_block_it_says_what_it_waits_for(self, console):
        with LiveLine("opening the model", console) as watcher:
            (line,) = drawn(watcher)
        assert re.search(r" opening the model  memory ", line)

    def test_a_resumed_run_leaves_a_line(self, console):
        with LiveLine("opening", console) as watcher:
            watcher("load", 2, 4)
        assert "resuming at block 3 of 4\n" in console.file.getvalue()

    def test_the_line_is_gone_and_the_cursor_back_when_the_run_fails(self, console):
        with pytest.raises(ZeroDivisionError), LiveLine("opening", console):
            raise ZeroDivisionError
        assert console.file.getvalue().endswith("\x1b[?25h\r\x1b[1A\x1b[2K")


def drawn(watcher: LiveLine) -> list[str]:
    """The live line on a terminal of 80 columns."""
    console = Console(file=io.StringIO(), width=80)
    console.print(watcher.line())
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


class TestMemory:
    """The system counts what a process holds now and what it held at most at different moments."""

    def test_now_is_never_more_than_the_peak(self, monkeypatch):
        monkeypatch.setattr("gs_core.memory.now", lambda: 3 * 2**20)
        monkeypatch.setattr("gs_core.memory.peak", lambda: 2 * 2**20)
        assert memory() == "memory 3 MiB (peak 3 MiB)"

    def test_where_the_system_only_tells_the_peak(self, monkeypatch):
        monkeypatch.setattr("gs_core.memory.now", lambda: None)
        monkeypatch.setattr("gs_core.memory.peak", lambda: 2 * 2**20)
        assert memory() == "memory peak 2 MiB"

    def test_the_peak_is_this_process_s_not_that_of_the_one_that_started_it(self):
        ballast = bytearray(os.urandom(4096)) * (256 * 2**20 // 4096)
        code = "from gs_core import memory; print(memory.now(), memory.peak())"
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert len(ballast) == 256 * 2**20
        now, peak = map(int, run.stdout.split())
        assert 2**20 < now <= peak + 2**20 < 128 * 2**20
