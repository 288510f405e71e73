"""The trials of one search: asked for and told in batches, each in a process of its own, each on disk as soon as it is done.

What is tried depends on the seed alone, not on which trial ends first. The budget is counted in floating-point operations, of
training and of answering, so that adapters, full tuning and cuts compare; a failed trial fills none of it.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from pydantic import ValidationError

from holdfast import disk, policy, watched
from holdfast import processes as working
from holdfast.activity import Board
from holdfast.checkpoint import locate
from holdfast.job import Job
from holdfast.problem import Problem
from holdfast.recipe import AttackRecipe, Recipe
from holdfast.space import Space, Values
from holdfast.watched import Point, Task, Trial, agreed

BATCH = 4
"""Trials asked for at once, however many processes there are."""
FAILURES = 2 * BATCH
"""Failed trials in a row after which something is wrong with the attack, not with its settings."""
FIRST_SEED = 2**31
"""Trials' seeds begin here: no audit asks for such a seed by itself."""
SEEDS = 100_000
"""Of each search."""
LEADERS, AGAIN = 3, 2
"""The best settings are tried again, with so many other seeds each, before one of them is called the best."""
SECONDS: Any = {"looks": {"__all__": {"cost": {"seconds"}}}}
"""Left out of records, so that equal searches are byte-equal."""


class Plan(NamedTuple):
    """One search."""

    recipe: Recipe
    """Subjects and judging; its attack is the one searched, in no settings of the search. The last subject is searched on."""
    space: Space
    left_out: tuple[str, ...]
    """Choices that the adversary cannot make, and why."""
    budget: float
    """In whole trials: the first that walked its whole path is one."""
    seed: int


class Leader(NamedTuple):
    """Settings among the best."""

    trial: Trial
    """The first with these settings."""
    point: Point
    """What they are worth over all seeds that they were tried with."""
    seeds: int


class Asks(Protocol):
    """Whatever says what to try next."""

    def ask(self) -> Values:
        """The settings of the next trial."""
        ...

    def tell(self, trial: Trial) -> None:
        """What became of a trial, in the order in which they were asked for."""
        ...


class Trials:
    """The trials of a search: those on disk, and those to come."""

    def __init__(self, chosen: Plan, folder: Path, board: Board, workers: int):
        self.plan, self.folder, self.board, self.workers = chosen, folder, board, workers
        self.done: list[Trial] = []
        """In the order in which they were asked for, failed ones too."""
        self.again: dict[int, list[Trial]] = {}
        """Repetitions with other seeds, by the trial's number."""
        self._jobs = _shared(chosen)

    @property
    def whole(self) -> float:
        """FLOPs of the first trial that walked its whole path; of the dearest where none did so far."""
        walked = (one.cost for one in self.done if one.status == "done")
        return next(walked, max((one.cost for one in self.done), default=0.0))

    @property
    def spent(self) -> float:
        """FLOPs of all trials that did not fail, repetitions too."""
        tried = [*self.done, *(one for some in self.again.values() for one in some)]
        return sum(one.cost for one in tried if one.status != "failed")

    def explore(self, sampler: Asks) -> None:
        """Try what the sampler asks for, batch after batch, until only enough is left to try the best settings again; then do.

        Raises:
            Problem: too many trials failed in a row, or what is on disk was asked for by another search.
        """
        while not self.spent or self.spent + self._reserved() < self.plan.budget * self.whole:
            asked = [sampler.ask() for _ in range(BATCH)]
            rivals = tuple(one.curve() for one in self.done if one.status != "failed")
            first = len(self.done)
            tasks = [
                Task(first + n, settings, self._job(first + n, settings), rivals) for n, settings in enumerate(asked)
            ]
            self.done += self._run(tasks)
            for one in self.done[first:]:
                sampler.tell(one)
            self._tell()
            last = self.done[-FAILURES:]
            if len(last) == FAILURES and all(one.status == "failed" for one in last):
                raise Problem(
                    f"{self.folder}: {FAILURES} trials in a row failed, the last because: {last[-1].reason}; mend that, "
                    "then delete this folder"
                )
        tasks = [task for one in self._leading() for task in self._repetitions(one)]
        for task, found in zip(tasks, self._run(tasks), strict=True):
            self.again.setdefault(task.number, []).append(found)

    def leaders(self) -> list[Leader]:
        """The best settings that differ, by what all their seeds say."""
        leading = [(one, [one, *self.again.get(one.number, [])]) for one in self._leading()]
        found = [Leader(one, agreed([t for t in tried if t.status != "failed"]), len(tried)) for one, tried in leading]
        return sorted(found, key=lambda one: (-one.point.worth, -one.point.utility, one.trial.number))

    def _leading(self) -> list[Trial]:
        """The best trials of settings that differ, among those that kept the utility asked for."""
        kept = [one for one in self.done if one.status != "failed" and one.best().missing <= 0]
        found: list[Trial] = []
        for one in sorted(kept, key=lambda one: (-one.best().worth, -one.best().utility, one.number)):
            if len(found) < LEADERS and all(self.plan.space.apart(one.chosen, other.chosen) for other in found):
                found.append(one)
        return found

    def _reserved(self) -> float:
        """FLOPs of trying the best settings again."""
        return AGAIN * sum(one.spent[one.best().look] for one in self._leading())

    def _repetitions(self, one: Trial) -> list[Task]:
        """The same settings with other seeds, on a clock as far as they were best."""
        cost, tasks = one.looks[one.best().look].cost, []
        for turn in range(1, AGAIN + 1):
            job = replace(self._job(one.number, one.chosen), seed=one.seed + turn * SEEDS // (AGAIN + 1))
            until = cost.steps if cost.severity is None else None
            tasks.append(Task(one.number, one.chosen, job, again=turn, until=until))
        return tasks

    def _job(self, number: int, settings: Values) -> Job:
        entry = AttackRecipe(**attack(self.plan.space, "searched", settings))
        seed = FIRST_SEED + self.plan.seed * SEEDS + number
        chosen = self.plan.recipe.model_copy(update={"attacks": [entry]})
        return Job(**self._jobs | {"recipe": chosen, "attack": entry.name, "seed": seed})

    def _run(self, tasks: Sequence[Task]) -> list[Trial]:
        """What became of each task, in their order."""
        known = {task.name: found for task in tasks if (found := self._read(task)) is not None}

        def done(task: Task, found: Trial) -> None:
            disk.write(self.folder / f"{task.name}.json", text(found.model_dump(exclude=SECONDS)))
            known[task.name] = found
            again = f", again with seed {task.again + 1}" if task.again else ""
            self.board.end(task.name, _line(found) + again)

        def died(task: Task, reason: str, last: bool) -> None:
            self.board.end(task.name)
            if last:
                facts = {"number": task.number, "chosen": task.chosen, "seed": task.job.seed}
                done(task, Trial(**facts, status="failed", reason=reason))

        working.each(
            self.workers, watched.run, [task for task in tasks if task.name not in known], done, died, self.board.hear
        )
        return [known[task.name] for task in tasks]

    def _tell(self) -> None:
        """How far the search is."""
        best = next((f", harm {one.point.harm:.2f} by the best" for one in self.leaders()), "")
        share = 100 * self.spent / (self.plan.budget * self.whole) if self.whole else 0.0
        self.board.doing("searching", f"{share:.0f} % of the budget spent{best}")

    def _read(self, task: Task) -> Trial | None:
        """What is on disk of a task."""
        path = self.folder / f"{task.name}.json"
        if not path.is_file():
            return None
        try:
            found = Trial.model_validate_json(path.read_text(encoding="utf-8"))
        except (ValidationError, ValueError) as error:
            raise Problem(f"{path}: damaged; delete it, and the same command runs that trial again") from error
        if (found.number, found.chosen) != (task.number, task.chosen):
            raise Problem(f"{path}: holds a trial that this search does not ask for; choose another --out")
        return found


def attack(chosen: Space, name: str, settings: Values) -> dict[str, Any]:
    """A recipe's entry for the attack with these settings."""
    return {"name": name, "method": chosen.method, **chosen.settings, **settings}


def _shared(chosen: Plan) -> dict[str, Any]:
    """What the jobs of all trials share."""
    subject, twin = chosen.recipe.subjects[-1], chosen.recipe.subjects[0]
    corpus = policy.prompts(Path(chosen.recipe.corpus or ""))
    assert subject.model and twin.model
    return {
        "subject": subject.name,
        "folder": locate(subject.model),
        "base": locate(subject.base) if subject.base else None,
        "undefended": locate(twin.model),
        "attacker": corpus.hand("attacker"),
        "judge": corpus.hand("judge").asked(chosen.recipe.prompts),
    }


def text(content: Any) -> str:
    """As a JSON file."""
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False, default=list) + "\n"


def _line(found: Trial) -> str:
    settings = ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in found.chosen.items()
    )
    if found.status == "failed":
        return f"trial {found.number} FAILED ({found.reason}): {settings}"
    point = found.best()
    told = f"harm {point.harm:.2f}, utility {point.utility:.2f} at {found.looks[point.look].cost.position:g}"
    told += "" if point.missing <= 0 else ", too little utility"
    return f"trial {found.number}: {told}{f'; stopped, {found.reason}' if found.reason else ''}: {settings}"
