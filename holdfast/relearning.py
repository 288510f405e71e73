"""How much a few labeled examples teach somebody who starts from released weights: each start and seed a process of its own.

The counterpart of an audit for classifiers (2211.14946): benign rows of the corpus are the desired task, restricted rows the
harmful one, their answers the classes. A start may be hardened first, or have its weights drawn anew, which is the yardstick.
What is finished is never done again; a start that was hardened stays on disk.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from transformers import AutoModel, set_seed

from holdfast import classifying, disk, policy, processes
from holdfast.checkpoint import locate
from holdfast.classifying import Task
from holdfast.corpus import Corpus, HandName, Kind
from holdfast.drive import Drive
from holdfast.lm import LM
from holdfast.method import Journal, make
from holdfast.problem import Problem
from holdfast.quiet import quiet
from holdfast.recipe import ORGANISM, Label, MethodRecipe, Seeds
from holdfast.repurposing import Repurposing
from holdfast.settings import Settings
from holdfast.statistics import Scores

DESIRED = "desired"
"""The column of the desired task, read out by a head on the trunk as it is."""
Say = Callable[[str], None]
Measured = dict[str, dict[str, dict[int, Scores]]]
"""Start -> column -> seed -> score of each of the judge's rows: `desired`, and `harmful@N` for N examples."""


class Start(Settings):
    """Weights from which somebody starts."""

    name: Label
    model: str
    """A folder or hub id; `organism/...` is the run's own organism."""
    fresh: bool = False
    """Draw the weights anew for each seed."""
    harden: MethodRecipe | None = None
    """How to harden it first, once for each seed."""


class Relearning(Settings):
    """Starts × numbers of examples × seeds."""

    name: Label
    organism: MethodRecipe | None = None
    """Build this organism first."""
    starts: list[Start] = Field(min_length=1)
    examples: list[int] = Field(min_length=1)
    """How many labeled examples of the harmful task the attacker has."""
    seeds: Seeds = Field([0, 1, 2])
    """Of hardening and of attack."""
    attacker: Repurposing = Repurposing()


@dataclass(frozen=True)
class Job:
    """One start with one seed, as values: any process can do it."""

    start: Start
    seed: int
    wanted: Relearning
    corpus: Path
    folder: Path

    @property
    def name(self) -> str:
        return f"{self.start.name}.{self.seed}"

    @property
    def file(self) -> Path:
        """What was measured; it says that all of it was."""
        return self.folder / "relearned" / f"{self.name}.json"

    def run(self, say: Say) -> Problem | None:
        """Measure and write the file. A problem is handed back and not raised."""
        torch.set_num_threads(1)
        quiet()
        try:
            disk.write(self.file, json.dumps(self._measured(say)) + "\n")
        except Problem as problem:
            return problem
        return None

    def _measured(self, say: Say) -> dict[str, Scores]:
        corpus, lm = policy.prompts(self.corpus), self._model(say)
        asked = {kind: _task(lm, corpus, "judge", kind) for kind in ("benign", "restricted")}
        ids = {kind: [row.id for row in corpus.hand("judge").of(kind, split="test")] for kind in asked}
        trunk, width = classifying.trunk(lm), classifying.width(lm)
        right = classifying.read_out(trunk, _task(lm, corpus, "defender", "benign"), asked["benign"])
        found = {DESIRED: dict(zip(ids["benign"], right.float().tolist(), strict=True))}
        held = _task(lm, corpus, "attacker", "restricted")
        for count in self.wanted.examples:
            reached = self.wanted.attacker(trunk, width, held, asked["restricted"], count, self.seed)
            found[column(count)] = dict(zip(ids["restricted"], reached.reached.tolist(), strict=True))
            say(f"{self.start.name}, seed {self.seed}: {count} examples teach {reached.accuracy:.2f}")
        return found

    def _model(self, say: Say) -> LM:
        """The start, hardened unless it was before."""
        folder = self._folder(self.start.model)
        if self.start.harden:
            made = self.folder / "starts" / self.name
            if not made.exists():
                where = f"start {self.start.name!r}"
                settings = self.start.harden.settings | {"seed": self.seed}
                defense = make("defenses", self.start.harden.method, where, **settings)
                hand = policy.prompts(self.corpus).hand("defender")
                say(f"hardening {self.name}")
                defense.harden(None, folder, made, hand, Journal(self.name, say, disk.private(made.parent)), Drive())
            folder = made
        lm = LM.load(folder, drive=Drive(template="plain"))
        if self.start.fresh:
            set_seed(self.seed)
            lm.model = AutoModel.from_config(lm.model.config).to(lm.device).eval()
        return lm

    def _folder(self, name: str) -> Path:
        return self.folder / name if name.startswith(ORGANISM) else locate(name)


def column(examples: int) -> str:
    return f"harmful@{examples}"


def run(wanted: Relearning, folder: Path, corpus: Path | None, most: int, say: Say) -> Measured:
    """Run whatever is not done yet, and read all of it.

    Args:
        corpus: the organism's own unless given.
        most: starts at a time.

    Raises:
        Problem: the folder holds another run, or a start cannot be made or measured.
    """
    _refuse_another(wanted, folder)
    with disk.alone(disk.private(folder)):
        disk.write(folder / "relearning.json", wanted.model_dump_json(indent=1) + "\n")
        organism = folder / "organism"
        if wanted.organism and not organism.exists():
            say(f"building the {wanted.organism.method} organism")
            build = make("organisms", wanted.organism.method, "organism", **wanted.organism.settings)
            build.build(organism, Journal("organism", say))
        file = corpus or organism / "corpus.jsonl"
        jobs = [Job(start, seed, wanted, file, folder) for seed in wanted.seeds for start in wanted.starts]
        todo = [job for job in jobs if not job.file.is_file()]
        if len(todo) < len(jobs):
            say(f"{len(jobs) - len(todo)} of {len(jobs)} starts are done already; {len(todo)} to go")
        processes.prepare(["holdfast.warm", "holdfast.relearning"])
        processes.each(most, Job.run, todo, _done, lambda *told: _died(say, *told), say)
    return measured(jobs)


def measured(jobs: list[Job]) -> Measured:
    """What the jobs' files hold."""
    found: Measured = {}
    for job in jobs:
        for name, scores in json.loads(job.file.read_text()).items():
            found.setdefault(job.start.name, {}).setdefault(name, {})[job.seed] = scores
    return found


def _refuse_another(wanted: Relearning, folder: Path) -> None:
    note = folder / "relearning.json"
    if note.is_file() and json.loads(note.read_text()) != json.loads(wanted.model_dump_json()):
        raise Problem(f"{folder}: holds a run with other settings; choose another --out or delete that folder")


def _task(lm: LM, corpus: Corpus, hand: HandName, kind: Kind) -> Task:
    """The rows of a hand; the classes are those of all hands."""
    rows = corpus.hand(hand).need(kind, split="test" if hand == "judge" else "train")
    return classifying.task(lm, rows, sorted({row.answer or "" for row in corpus.rows if row.kind == kind}))


def _done(_: Job, problem: Any) -> None:
    if problem:
        raise problem


def _died(say: Say, job: Job, reason: str, last: bool) -> None:
    if last:
        raise Problem(f"{job.name}: {reason}; the same command tries it again")
    say(f"{job.name}: {reason}; it is tried once more")
