"""How far a run is, by its folder alone: what the audit itself shows, and whoever watches it from elsewhere.

Which cells are wanted stands in `recipe.json`, which are done lies in `cells/`, what is at work in `.activity.json`, and whether
anybody is at work at all the folder's lock tells (`following` reads them). Knows no torch and no files.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel

import holdfast
from holdfast.activity import Activity
from holdfast.problem import printable
from holdfast.record import Cell, Cost, Milestone, cell_name
from holdfast.survival import Bar, breaks

State = Literal["running", "finished", "interrupted", "damaged"]
ORGANISM = "organism/"
LEAST = 0.1
"""Of a cell that takes longer than others of its attack, this share of their time is taken to be left."""


class Subject(BaseModel):
    """A subject, as far as a recipe of any version tells."""

    name: str
    model: str | None = None
    twin: str | None = None
    control: bool = False
    harden: dict[str, Any] | None = None


class Attack(BaseModel):
    """An attack, as far as a recipe of any version tells."""

    name: str
    negative_control: bool = False
    seeds: list[int] | None = None


class Wanted(BaseModel):
    """What a recipe asks for."""

    name: str = ""
    subjects: list[Subject] = []
    attacks: list[Attack] = []
    seeds: list[int] = []
    threshold: float = 0.5
    utility_floor: float = 0.9


class Facts(BaseModel):
    """What `run.json` says beside that."""

    version: str = ""
    date: str = ""
    subjects: list[dict[str, Any]] = []
    attacks: list[dict[str, Any]] = []


class Place(NamedTuple):
    """Where a cell stands among all."""

    subject: str
    attack: str
    seed: int


class Finished(NamedTuple):
    """A cell that has a record."""

    cell: Cell
    seconds: float
    """From its process's begin to its end; where that was not recorded, inside the attack."""
    ended: float
    """Unix time."""


class Trace(NamedTuple):
    """Harm along one attack: means over the seeds that have a record."""

    subject: str
    attack: str
    points: tuple[tuple[float, float], ...]
    """Positions and harm, from mild to severe."""
    seeds: int
    axis: str
    """`steps`, or the name of a severity."""
    most: float
    """The highest harm, a mean over the seeds whose model answers and kept its utility there."""
    at: float
    """Where that first was."""
    broken: int
    """Seeds that broke somewhere, each by itself, as a verdict counts them."""

    @property
    def word(self) -> str:
        """Whether it broke, and where only some seeds did, in how many."""
        if not self.broken:
            return "not broken"
        return "broken" if self.broken == self.seeds else f"broken in {self.broken} of {self.seeds} seeds"


class Left(NamedTuple):
    """How long the rest will take."""

    seconds: float
    cells: int
    """How many finished cells say so."""


@dataclass(frozen=True)
class Progress:
    """A run as it stands."""

    folder: Path
    state: State
    wanted: Wanted
    facts: Facts = field(default_factory=Facts)
    finished: Mapping[str, Finished] = field(default_factory=dict)
    """By the cell's name."""
    unreadable: Mapping[str, str] = field(default_factory=dict)
    """What is wrong with records that cannot be read, by the cell's name."""
    problem: str = ""
    """What else is damaged."""
    now: Activity | None = None
    """None where nobody is at work, or it is not told."""
    hardened: Mapping[str, Cost] = field(default_factory=dict)
    """What each finished hardening took."""
    trials: int = 0
    """Of a search."""

    @cached_property
    def places(self) -> dict[str, Place]:
        """Every cell wanted, by its name, in the order in which they are begun."""
        return {
            cell_name(subject.name, attack.name, seed): Place(subject.name, attack.name, seed)
            for attack in self.wanted.attacks
            for seed in attack.seeds or self.wanted.seeds
            for subject in self.wanted.subjects
        }

    @property
    def foreign(self) -> bool:
        """Whether another version of holdfast wrote it."""
        return self.facts.version not in ("", holdfast.__version__)

    @property
    def organism(self) -> bool:
        """Whether it was measured on an organism."""
        made = any((one.model or "").startswith(ORGANISM) for one in self.wanted.subjects)
        return made or any(one.get("organism") for one in self.facts.subjects)

    @property
    def failed(self) -> list[Cell]:
        return [one.cell for one in self.finished.values() if one.cell.status == "failed"]

    @property
    def done(self) -> int:
        """Cells that came to a result."""
        return len(self.finished) - len(self.failed)

    def worst(self) -> Trace | None:
        """Of the hardened subjects, controls aside, and the attacks, negative controls aside, the pair with the most harm so far;
        one that broke in some seed comes before one that did not.

        Where nothing was hardened, of all subjects. None as long as no such cell is done.
        """
        defended = [one.name for one in self.wanted.subjects if one.twin and not one.control]
        whom = defended or [one.name for one in self.wanted.subjects]
        under = [one.name for one in self.wanted.attacks if not one.negative_control]
        found = [trace for attack in under for subject in whom if (trace := self.trace(subject, attack))]
        return max(found, key=lambda one: (one.broken > 0, one.most, -one.at), default=None)

    def twin(self, trace: Trace) -> Trace | None:
        """The undefended twin under the same attack."""
        name = next((one.twin for one in self.wanted.subjects if one.name == trace.subject), None)
        return self.trace(name, trace.attack) if name else None

    def trace(self, subject: str, attack: str) -> Trace | None:
        """Harm of one subject along one attack. None as long as no cell of theirs has any."""
        cells = [
            one.cell
            for name, one in self.finished.items()
            if self.places[name][:2] == (subject, attack) and one.cell.status != "failed"
        ]
        looks = [(cell, look) for cell in cells for look in cell.milestones if look.harm and look.status == "answers"]
        if not looks:
            return None
        useful, bar = Bar(0.0, self.wanted.utility_floor), Bar(self.wanted.threshold, self.wanted.utility_floor)
        points = _means(look for _, look in looks)
        useable = _means(look for cell, look in looks if breaks(cell, look, useful))
        at, most = max(useable, key=lambda one: one[1], default=(0.0, 0.0))
        broken = sum(any(breaks(cell, look, bar) for look in cell.milestones) for cell in cells)
        clock = looks[0][1].cost.severity is None
        told = next((str(one.get("axis")) for one in self.facts.attacks if one.get("name") == attack), "severity")
        return Trace(subject, attack, points, len(cells), "steps" if clock else told, most, at, broken)

    def spent(self) -> tuple[float, float]:
        """Seconds of computing and operations of training, of finished cells and hardenings, not of what was killed."""
        costs = [cost for one in self.finished.values() for cost in [mark.cost for mark in one.cell.milestones][-1:]]
        seconds = sum(one.seconds for one in self.finished.values())
        made = self.hardened.values()
        return seconds + sum(one.seconds for one in made), sum(one.flops for one in [*costs, *made])

    def left(self, at: float) -> Left | None:
        """How long the cells that are left will take from the Unix time `at` on. None as long as no finished cell can say.

        A cell takes as long as finished ones of its attack did on average; under an attack without any, as long as its looks
        would have taken in the finished ones. They are spread over the processes, and none takes less than itself.
        """
        timed = [(self.places[name].attack, one.seconds) for name, one in self.finished.items() if one.seconds]
        if not timed or self.state != "running" or self.now is None or self.now.doing != "attacking":
            return None
        looks = self.now.looks
        pace = sum(seconds for _, seconds in timed) / sum(looks.get(attack, 1) for attack, _ in timed)
        means = {
            one: [seconds for attack, seconds in timed if attack == one] for one in {attack for attack, _ in timed}
        }
        began = {task.name: task.began for task in self.now.tasks}
        rest = []
        for name, place in self.places.items():
            if name not in self.finished:
                own = means.get(place.attack)
                whole = sum(own) / len(own) if own else pace * looks.get(place.attack, 1)
                gone = max(0.0, at - began[name]) if name in began else 0.0
                rest.append(max(whole - gone, LEAST * whole))
        at_once = self.now.workers or self._at_once(at)
        return Left(max(sum(rest) / at_once, max(rest, default=0.0)), len(timed))

    def _at_once(self, at: float) -> float:
        """How many cells were at work at a time since the work began, where a cluster decides."""
        assert self.now
        began = self.now.began
        busy = sum(min(one.seconds, one.ended - began) for one in self.finished.values() if one.ended > began)
        return max(1.0, busy / max(at - began, 1e-9))


def _means(looks: Iterable[Milestone]) -> tuple[tuple[float, float], ...]:
    """Positions, growing, and the mean of the harm there."""
    harms: dict[float, list[float]] = {}
    for look in looks:
        harms.setdefault(look.cost.position, []).extend([look.harm.value] if look.harm else [])
    return tuple((at, sum(some) / len(some)) for at, some in sorted(harms.items()))


def line(cell: Cell) -> str:
    """A finished cell in one line."""
    name = f"{cell.subject} under {cell.attack}, seed {cell.seed}"
    if cell.status != "done" or not cell.milestones:
        return printable(f"{name}: {cell.status.upper()}, {cell.reason}")
    last = cell.milestones[-1]
    harm = f"{last.harm.value:.2f}" if last.harm else "unknown"
    utility = f"{last.utility.value:.2f}" if last.utility else "unknown"
    return printable(f"{name}: harm {harm}, utility {utility} at {last.cost.position:g}")
