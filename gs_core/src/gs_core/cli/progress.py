"""How far a run is, on stderr: a live line in a terminal, one plain line for each block elsewhere."""

import os
import sys
import time
from types import TracebackType
from typing import Self

import typer

from gs_core.cli.text import duration, size

PASSES = ("measure", "gradients")
"""Stages that go through all blocks on their own, before the others begin with the first one."""


def watching(doing: str) -> "Watcher":
    """A context manager to be called as ``gs_core.stages.Progress``; ``doing`` is said before the first block."""
    if not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        return PlainLines(doing)
    from gs_core.cli.live import LiveLine

    return LiveLine(doing)


class Watcher:
    """Counts blocks and seconds; what is shown is up to the subclass."""

    def __init__(self, doing: str):
        self.doing = doing
        self.first: int | None = None
        self.block = self.blocks = 0
        self.alone = ""
        """Which of ``PASSES`` is going on."""
        self.seconds = 0.0
        """What the last finished block took."""

    def __enter__(self) -> Self:
        self.begin()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None and self.first is not None:
            self(self.alone or "finish", self.blocks, self.blocks)
        self.end()

    def __call__(self, stage: str, block: int, blocks: int) -> None:
        now = time.monotonic()
        if self.alone and stage != self.alone:
            self._reached(self.blocks, now)
            self.first = None
        self.alone = stage if stage in PASSES else ""
        if self.first is None:
            self.first, self.block, self.blocks = block, block, blocks
            self._started = self._block_started = now
            if block:
                where = f"at block {block + 1} of {blocks}" if block < blocks else f"after all {blocks} blocks"
                self.say(f"resuming {where}")
        self._reached(block, now)
        self.work(stage)

    def _reached(self, block: int, now: float) -> None:
        if block > self.block:
            self.seconds, self._block_started, self.block = now - self._block_started, now, block
            self.finished()

    @property
    def left(self) -> str:
        """The time left if the other blocks take as long as those that this process finished."""
        if self.first is None or not self.first < self.block < self.blocks:
            return ""
        each = (self._block_started - self._started) / (self.block - self.first)
        this = max(0.0, each - (time.monotonic() - self._block_started))
        return f"{duration(this + each * (self.blocks - self.block - 1))} left"

    def say(self, line: str) -> None:
        typer.echo(line, err=True)

    def begin(self) -> None: ...

    def end(self) -> None: ...

    def finished(self) -> None: ...

    def work(self, stage: str) -> None: ...


class PlainLines(Watcher):
    """For logs: no control characters."""

    def begin(self) -> None:
        self.say(self.doing)

    def finished(self) -> None:
        done = f"{self.alone or 'block'} {self.block} of {self.blocks}: {duration(self.seconds)}"
        self.say(", ".join(filter(None, (done, memory(), self.left))))


def memory() -> str:
    """Resident memory of this process now, where the system tells, and at its peak so far."""
    from gs_core import memory

    now, peak = memory.now(), memory.peak()
    return f"memory {size(now)} (peak {size(max(now, peak))})" if now else f"memory peak {size(peak)}"
