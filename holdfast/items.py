"""Items of tasks that another framework puts, as utility: each has a score of its own, where a corpus has a benign prompt's."""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from pydantic import Field

from holdfast import disk
from holdfast.settings import Settings


class Said(NamedTuple):
    """What a model made of one item."""

    score: float
    answer: str
    """What it wrote; empty where it only chose."""


class Items(Settings):
    """Which tasks of a framework are put, and how."""

    asks_only: ClassVar[bool] = False
    """Whether answers are all that it reads of a model: likelihoods are nowhere to be had of one that is served."""
    limit: int | None = Field(None, gt=0)
    """Items of each task, the first ones; all unless given."""

    @property
    @abstractmethod
    def described(self) -> str:
        """The tasks, and whose they are."""

    @abstractmethod
    def located(self, folder: Path) -> "Items":
        """The same with files that lie in `folder` by their absolute paths."""

    @abstractmethod
    def ready(self) -> str:
        """Load the tasks. Returns a hash of their settings and items; raises `Problem` where they cannot be utility."""

    @abstractmethod
    def __call__(self, lm: Any) -> dict[str, Said]:
        """By item, what the model where it stands makes of it. Leaves random states as found."""


def until(text: str, stops: str | Sequence[str]) -> str:
    """The text before the first of the stop strings."""
    for stop in [stops] if isinstance(stops, str) else stops:
        text = text.partition(stop)[0] if stop else text
    return text


def task_beside(name: str, folder: Path) -> str:
    """A task of a file that lies in `folder`, as `./task.py@name`, with the file's absolute path; any other as it is."""
    file, at, task = name.partition("@")
    return disk.beside(file, folder) + at + task
