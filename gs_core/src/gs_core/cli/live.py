"""Progress for people: a line that is redrawn in place, and gone when the run ends."""

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table

from gs_core.cli.progress import Watcher, memory


class LiveLine(Watcher):
    """Stage, blocks, memory and time left, a few times a second."""

    def __init__(self, doing: str, console: Console | None = None):
        super().__init__(doing)
        self._console = console or Console(stderr=True)

    def begin(self) -> None:
        self._spinner = Spinner("dots")
        self._stage = self.doing
        self._live = Live(get_renderable=self.line, console=self._console, transient=True, refresh_per_second=4)
        self._live.start()

    def end(self) -> None:
        self._live.stop()

    def say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False)

    def work(self, stage: str) -> None:
        self._stage = stage

    def line(self) -> Table:
        line = Table.grid(padding=(0, 2))
        for _ in range(6):
            line.add_column(no_wrap=True)
        if not self.blocks:
            line.add_row(self._spinner, self._stage, memory())
        else:
            bar = ProgressBar(total=self.blocks, completed=self.block, width=10)
            line.add_row(self._spinner, f"{self._stage:9}", bar, f"{self.block}/{self.blocks}", memory(), self.left)
        return line
