"""What is at work in a run's folder now: a file beside the records, for whoever watches; it goes when the work ends.

Nothing of it reaches a record, so equal runs stay byte-equal. Whether anybody is at work, the folder's lock tells (`disk.held`),
not this file: one that a killed process left behind says nothing. Knows no torch.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Literal, NamedTuple

from pydantic import Field, ValidationError

import holdfast
from holdfast import disk
from holdfast.problem import Problem, printable
from holdfast.record import Record

FILE = ".activity.json"
EVERY = 0.5
"""Seconds between two writings, at least: an attack on a small model is looked at more often."""
Doing = Literal["preparing", "hardening", "asking", "attacking", "searching"]


class Task(Record):
    """One process at work: on a hardening, on a cell, on a trial of a search."""

    name: str
    began: float
    """Unix time."""
    looks: int = 0
    """Milestones at which the model has answered."""
    position: float | None = None
    """Where on the attack's axis the last of them lies."""
    says: str = ""
    """The last line it said."""


class Activity(Record):
    """What is at work in a run's folder."""

    version: str
    """Of holdfast."""
    process: int
    began: float
    """Unix time."""
    doing: Doing
    says: str = ""
    """More of that, as a search tells it."""
    workers: int | None = None
    """Processes at a time; None where a cluster decides."""
    looks: dict[str, int] = Field(default_factory=dict)
    """How many looks a cell under each attack takes, as far as that can be told before."""
    tasks: tuple[Task, ...] = ()


class Word(NamedTuple):
    """What a process at work says of itself."""

    name: str
    """Of its task."""
    position: float | None = None
    """Of a look just taken."""
    line: str = ""


def read(folder: Path) -> Activity | None:
    """What is at work there, as its file says. None where there is no file, or it is damaged, or of another version."""
    try:
        return Activity.model_validate_json((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValidationError, ValueError, RecursionError):
        return None


class Board:
    """Writes down what is at work while it is; what is said passes through here, too.

    Keeping the file costs a thread that wakes twice a second. A folder that cannot be written stops nothing: what matters is
    written elsewhere, and complains there.
    """

    def __init__(self, folder: Path, workers: int | None, tell: Callable[[str], None], mention: Callable[[str], None]):
        """`tell` prints what everybody should read, `mention` what a task says as it goes on."""
        self.tell, self.mention, self._folder = tell, mention, folder
        self._now = Activity(
            version=holdfast.__version__, process=os.getpid(), began=time.time(), doing="preparing", workers=workers
        )
        self._tasks: dict[str, Task] = {}
        self._changed, self._lock, self._over = True, threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True)

    def __enter__(self) -> "Board":
        self._write()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            (self._folder / FILE).unlink(missing_ok=True)

    def doing(self, what: Doing, says: str = "", looks: Mapping[str, int] | None = None) -> None:
        """Something else begins."""
        with self._lock:
            more = {} if looks is None else {"looks": dict(looks)}
            self._now = self._now.model_copy(update={"doing": what, "says": says, **more})
            self._changed = True

    def hear(self, word: Word) -> None:
        """A process says that it is at work, where its attack stands, or a line."""
        with self._lock:
            task = self._tasks.get(word.name) or Task(name=word.name, began=time.time())
            looked = {} if word.position is None else {"looks": task.looks + 1, "position": word.position}
            said = {"says": printable(word.line)} if word.line else {}
            self._tasks[word.name] = task.model_copy(update=looked | said)
            self._changed = True
        if word.line:
            self.mention(word.line)

    def end(self, name: str, line: str = "") -> None:
        """A task is over, well or not."""
        with self._lock:
            self._tasks.pop(name, None)
            self._changed = True
        if line:
            self.mention(line)

    def _keep(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # Ctrl-C is the main thread's business
        while not self._over.wait(EVERY):
            self._write()

    def _write(self) -> None:
        with self._lock:
            if not self._changed:
                return
            now, self._changed = self._now.model_copy(update={"tasks": tuple(self._tasks.values())}), False
        with contextlib.suppress(Problem, OSError):
            disk.write(self._folder / FILE, now.model_dump_json() + "\n")
