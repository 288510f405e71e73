"""One cell to run, as values: it can be sent to any process on any machine, and its record is carried back.

It runs in a process of its own, so that a crash is a failed cell and nothing else.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch

from holdfast.cell import Walk, milestones
from holdfast.corpus import Hand
from holdfast.lm import LM
from holdfast.memory import Known
from holdfast.opening import Place, opened
from holdfast.problem import Problem, printable
from holdfast.quiet import quiet
from holdfast.recipe import AttackRecipe, Recipe
from holdfast.record import Cell, Cost, cell_name
from holdfast.served import Served

Result = tuple[Cell, list[dict[str, Any]]]
"""A cell's record and its per-prompt rows."""
Looked = Callable[[float], None]
"""Hears of each look where on the attack's axis it was taken."""


@dataclass(frozen=True)
class Job:
    """Everything that one cell depends on: values, and folders of checkpoints."""

    recipe: Recipe
    subject: str
    attack: str
    seed: int
    folder: Place
    """The subject's checkpoint, or what it is asked at."""
    base: Path | None
    """The checkpoint before its alignment."""
    undefended: Place
    """The twin's checkpoint, or the subject's own if it has none: it judges what is gibberish."""
    attacker: Hand
    judge: Hand
    keep_answers: bool = False
    weights: Path | None = None
    """Where to keep the attacked weights of a cell that is done; None: nowhere."""
    known: Known = field(default_factory=dict, repr=False)
    """What `start` of another cell of the subject told; the record is the same without."""

    @property
    def name(self) -> str:
        return cell_name(self.subject, self.attack, self.seed)

    @property
    def places(self) -> set[Path]:
        """The folders and files that it reads: checkpoints, and the file of an attack of somebody's own."""
        named = {place for place in (self.folder, self.undefended, self.base) if isinstance(place, Path)}
        method = self.recipe.attack(self.attack).method
        return named | ({Path(method)} if method.endswith(".py") else set())

    def moved(self, to: Callable[[Path], Path]) -> "Job":
        """The same job where each of its places lies at `to(place)`."""
        own = self.recipe.attack(self.attack)
        if own.method.endswith(".py"):
            own = own.model_copy(update={"method": str(to(Path(own.method)))})
        return replace(
            self,
            recipe=self.recipe.model_copy(update={"attacks": [own]}),
            folder=to(self.folder) if isinstance(self.folder, Path) else self.folder,
            base=self.base and to(self.base),
            undefended=to(self.undefended) if isinstance(self.undefended, Path) else self.undefended,
        )

    def run(self, looked: Looked = lambda _: None) -> Result:
        """The cell and its rows: for equal jobs the same but for the seconds. Writes no record; `looked` hears of each look.

        Raises:
            Problem: the attacked weights were to be kept and cannot be written.
        """
        torch.set_num_threads(1)
        quiet()
        recipe, lm = self.recipe, None
        try:
            lm = opened(self.folder, base=self.base, drive=recipe.drive, finite=False)  # such a model is dead
            walk, attack = self._walk(lm, looked), recipe.attack(self.attack)
            walk.take(attack.build(), self.attacker, self.seed, attack.until)
            cell, rows = walk.scored(self.subject, self.attack, self.seed)
        except (Exception, SystemExit) as error:
            # Any failure of an attack is a result: a failed cell, never a resisted one.
            return self.failed(str(error) if isinstance(error, Problem) else f"{type(error).__name__}: {error}")
        finally:
            if isinstance(lm, Served):
                lm.close()
        if not self.keep_answers:
            rows = [row | {"answer": None, "begun": None} for row in rows]
        if self.weights and isinstance(lm, LM) and cell.status == "done":
            shutil.rmtree(self.weights, ignore_errors=True)  # of a run that was killed
            lm.save(self.weights)
        return cell, rows

    def start(self) -> Known:
        """What the subject says before any attack. Nothing where it cannot be asked: its cells then find out why."""
        torch.set_num_threads(1)
        quiet()
        try:
            walk = self._walk(opened(self.folder, base=self.base, drive=self.recipe.drive))
            walk.begin()
            return walk.memory.known
        except (Exception, SystemExit):
            return {}

    def _walk(self, lm: LM | Served, looked: Looked = lambda _: None) -> Walk:
        test, reserve = self.judge.of(split="test"), self.judge.of("restricted", split="reserve")
        return Followed(looked, lm, test, self.recipe, self.undefended, reserve=reserve, known=self.known)

    def failed(self, reason: str) -> Result:
        """The record of a cell that came to no result."""
        place = {"subject": self.subject, "attack": self.attack, "seed": self.seed}
        return Cell(**place, status="failed", reason=printable(reason)), []


class Followed(Walk):
    """A walk that tells where it is."""

    def __init__(self, looked: Looked, *places: Any, **more: Any):
        super().__init__(*places, **more)
        self._looked = looked

    def _look(self, cost: Cost) -> None:
        super()._look(cost)
        self._looked(cost.position)


def looks(attack: AttackRecipe) -> int:
    """How often a cell of this attack has the judge's prompts answered: at its milestones, of a severity at each point."""
    steps = int(attack.settings.get("steps", 0))
    if steps:
        return 2 + sum(1 for _ in takewhile(lambda due: due < steps, milestones()))
    return 1 + max((len(value) for value in attack.settings.values() if isinstance(value, list)), default=1)
