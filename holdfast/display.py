"""A run's progress on the screen while somebody works or watches: redrawn in place on a terminal, plain lines elsewhere.

Both read nothing but the run's folder. Plain where nobody sees it happen: no terminal, TERM=dumb, CI or NO_COLOR set.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live

from holdfast import dashboard, progress
from holdfast.activity import Board
from holdfast.following import Reader
from holdfast.problem import Problem, printable
from holdfast.progress import Progress

EVERY = 0.5
"""Seconds between two looks at the folder."""
SILENT = 60.0
"""Seconds without a line after which a plain one tells how far the run is: whoever waits should not think it dead."""

SHOWN = b"\x1b[?25h\n"
"""What shows a terminal's cursor, on a line of its own."""


def drawable(console: Console) -> bool:
    """Whether somebody looks at a terminal that can be drawn on."""
    plain = any(os.environ.get(name) for name in ("CI", "NO_COLOR"))
    letters = (console.encoding or "").lower().startswith("utf")
    return console.is_interactive and not console.is_dumb_terminal and console.file.isatty() and letters and not plain


def teller(console: Console) -> Callable[[str], None]:
    """Prints a line as it is: names and numbers of others may hold what looks like markup."""
    return lambda line: console.print(printable(line), markup=False, highlight=False, soft_wrap=True)


class Display:
    """Shows how a run goes, until it is closed; looks at its folder in a thread of its own."""

    def __init__(self, console: Console, folder: Path):
        self.console = console
        self.say = teller(console)
        self._reader = Reader(folder)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True)
        self.run: Progress | None = None
        """The last look; None before the first one that could be taken."""

    def mention(self, line: str) -> None:
        """What a process says as it goes on."""
        self.say(line)

    def look(self) -> None:
        """Look at the folder and show what is new."""
        with contextlib.suppress(Problem, OSError):  # it may not be there yet, or not any more
            before, self.run = self.run, self._reader.look()
            self._show(before, self.run)

    def _show(self, before: Progress | None, now: Progress) -> None:
        raise NotImplementedError

    def __enter__(self) -> "Display":
        self.look()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()
        self.look()

    def _keep(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # Ctrl-C is the main thread's business
        while not self._over.wait(EVERY):
            self.look()


class Screen(Display):
    """The view, redrawn in place; it goes when it is closed, and the cursor is put back, though SIGTERM ended the process."""

    def __init__(self, console: Console, folder: Path):
        super().__init__(console, folder)
        self._live = Live(console=console, auto_refresh=False, transient=True, vertical_overflow="crop")
        self._size = console.size
        self._terminated: Any = None
        """Who heard of SIGTERM before."""

    def mention(self, line: str) -> None:
        """The view shows it."""

    def __enter__(self) -> "Display":
        if threading.current_thread() is threading.main_thread():
            self._terminated = signal.signal(signal.SIGTERM, self._terminate)
        self._live.start()
        return super().__enter__()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            super().__exit__(kind, error, at)
        finally:
            self._live.stop()
            if self._terminated is not None:
                signal.signal(signal.SIGTERM, self._terminated)

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        """Show the cursor, and end as if nobody had asked to be told first."""
        os.write(self.console.file.fileno(), SHOWN)  # and not by rich, whose lock the other thread may hold
        signal.signal(number, self._terminated)
        signal.raise_signal(number)

    def _show(self, before: Progress | None, now: Progress) -> None:
        seen = before.finished if before else now.finished
        for name, one in now.finished.items():
            if name not in seen and one.cell.status != "done":
                self.say(progress.line(one.cell))
        size = self.console.size
        if size.width < self._size.width:
            self.console.clear()  # the terminal has broken the lines of the last view anew: nobody knows where it began
        self._size = size
        # The last column is left free: a full one makes some terminals begin another line.
        self._live.update(dashboard.view(now, time.time(), size.width - 1, size.height - 1), refresh=True)


class Lines(Display):
    """A line for each cell that is done, and now and then how far the run is."""

    _said = 0.0

    def _show(self, before: Progress | None, now: Progress) -> None:
        at = time.time()
        seen = before.finished if before else now.finished
        for name, one in now.finished.items():
            if name not in seen or seen[name].ended != one.ended:
                self.say(f"{progress.line(one.cell)} ({one.seconds:.0f} s; {dashboard.summary(now, at)})")
                self._said = at
        if before is None:
            self._said = at
        elif at - self._said >= SILENT:
            self.say(dashboard.summary(now, at))
            self._said = at


def display(console: Console, folder: Path) -> Display:
    """What suits the console."""
    return (Screen if drawable(console) else Lines)(console, folder)


@contextlib.contextmanager
def shown(console: Console, folder: Path, workers: int | None) -> Iterator[Board]:
    """Shows the work in `folder` while it is done; whoever works says what they are at on the board."""
    screen = display(console, folder)
    with Board(folder, workers, screen.say, screen.mention) as board, screen:
        yield board
