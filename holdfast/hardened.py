"""The subjects that a recipe hardens: each made once, in a process of its own, as many at a time as the audit has processes.

What a hardening needs of another, its weights (`on`) or its settings (`like`), it waits for. Its result depends on nothing else,
so it does not matter how many run at once. One that was killed goes on from what its defense kept.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from holdfast import disk, packed, processes, spent
from holdfast.activity import Board, Word
from holdfast.corpus import Hand
from holdfast.drive import Drive
from holdfast.method import Journal, make
from holdfast.problem import Problem, meant
from holdfast.quiet import quiet
from holdfast.recipe import ORGANISM, Recipe, SubjectRecipe
from holdfast.record import Cost
from holdfast.run import Run

Say = Callable[[str], None]


class Made(NamedTuple):
    """A hardened subject."""

    folder: Path
    defense: dict[str, Any]
    """Method and settings as resolved."""
    cost: Cost
    """Without seconds, which lie in the timings file: equal runs are byte-equal."""


@dataclass(frozen=True)
class Hardening:
    """One subject to harden, as values: any process can do it."""

    subject: SubjectRecipe
    model: Path
    """The checkpoint to start from."""
    base: Path | None
    like: dict[str, Any]
    """Settings that the recipe leaves open."""
    hand: Hand
    drive: Drive
    place: Path
    """The run's folder of subjects."""

    @property
    def name(self) -> str:
        return self.subject.name

    @property
    def note(self) -> Path:
        """What was done; it says that the checkpoint is whole."""
        return self.place / f"{self.name}.json"

    def run(self, hear: Callable[[Word], None]) -> Problem | None:
        """Make the checkpoint and the note. A problem, or a defense's own failure, is handed back and not raised."""
        torch.set_num_threads(1)
        quiet()
        try:
            self._make(lambda line: hear(Word(self.name, line=line)))
        except Problem as problem:
            return problem
        except (Exception, SystemExit) as error:  # a defense of somebody's own may fail in any way
            return Problem(f"recipe, subject {self.name!r}: hardening failed ({type(error).__name__}: {error})")
        return None

    def _make(self, say: Say) -> None:
        assert self.subject.harden
        method, out = self.subject.harden.method, self.place / self.name
        say(f"hardening {self.name} with {method}")
        shutil.rmtree(out, ignore_errors=True)
        defense = make("defenses", method, f"recipe, subject {self.name!r}", **self.like | self.subject.harden.settings)
        aside = self.place / f".{self.name}.spent.json"
        with spent.counted(aside) as count:
            defense.harden(self.base, self.model, out, self.hand, Journal(self.name, say, self.place), self.drive)
        cost, resolved = count.cost, {"method": method, **defense.model_dump(mode="json")}
        if (out / "holdfast.json").is_file():
            resolved = json.loads((out / "holdfast.json").read_text())["defense"]
        disk.write(self.place / f"{self.name}.timing.json", json.dumps({"seconds": cost.seconds}) + "\n")
        aside.unlink(missing_ok=True)
        note = {"defense": resolved, "hardening": cost.model_dump(include={"examples", "tokens", "flops"})}
        disk.write(self.note, json.dumps(note, indent=1) + "\n")
        say(f"hardened {self.name}: {cost.seconds:.0f} s")


def subjects(recipe: Recipe, audit: Run, hand: Hand, most: int, board: Board) -> dict[str, Made]:
    """Every subject to harden, by name, made where it is not there yet; at most so many at a time.

    Raises:
        Problem: one of them cannot be made. Those that are made stay.
    """
    made: dict[str, Made] = {}
    waiting = [subject for subject in recipe.subjects if subject.harden]
    if waiting:
        board.doing("hardening")
    while waiting:
        absent = {subject.name for subject in waiting}
        ready = [subject for subject in waiting if not {subject.on, subject.like} & absent]
        jobs = [_job(recipe, subject, audit, hand, made) for subject in ready]
        todo = [job for job in jobs if not ((job.place / job.name).is_dir() and job.note.is_file())]
        processes.each(most, Hardening.run, todo, partial(_done, board), partial(_died, board), board.hear)
        made |= {job.name: _read(job) for job in jobs}
        waiting = [subject for subject in waiting if subject not in ready]
    return made


def folder_of(name: str, audit: Run) -> Path:
    """The checkpoint that a recipe calls so. Raises `Problem` if there is none of plain weights."""
    if not name.startswith(ORGANISM):
        return packed.plain(name)
    parts = [path.parent.name for path in sorted((audit.folder / ORGANISM).glob("*/config.json"))]
    part = name.removeprefix(ORGANISM)
    if part not in parts:
        raise Problem(f"recipe: the organism has no checkpoint {part!r}; {meant(part, parts)}")
    return audit.folder / name


def _job(recipe: Recipe, subject: SubjectRecipe, audit: Run, hand: Hand, made: dict[str, Made]) -> Hardening:
    assert subject.model  # the recipe's reader made sure
    like = made[subject.like].defense if subject.like else {}
    return Hardening(
        subject=subject,
        model=made[subject.on].folder if subject.on else folder_of(subject.model, audit),
        base=folder_of(subject.base, audit) if subject.base else None,
        like={key: value for key, value in like.items() if key != "method"},
        hand=hand,
        drive=recipe.drive,
        place=audit.folder / "subjects",
    )


def _done(board: Board, job: Hardening, problem: Problem | None) -> None:
    board.end(job.name)
    if problem:
        raise problem


def _died(board: Board, job: Hardening, reason: str, last: bool) -> None:
    board.end(job.name)
    if last:
        raise Problem(f"recipe, subject {job.name!r}: hardening died, {reason}; the same command tries it again")
    board.tell(f"hardening {job.name}: {reason}; it is tried once more")


def _read(job: Hardening) -> Made:
    note = json.loads(job.note.read_text())
    return Made(job.place / job.name, note["defense"], Cost(**note["hardening"]))
