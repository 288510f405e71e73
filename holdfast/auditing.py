"""From a recipe to records: every subject × attack × seed, each cell in a process of its own.

What is finished is never done again: a cell's record is written when it is done and skipped when it is there, so an audit
killed at any moment goes on where it was. One torch thread a process: small models lose far more by sharing cores.
"""

import os
import platform
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from rich.console import Console

import holdfast
from holdfast import cluster, disk, policy, prepare
from holdfast import processes as working
from holdfast.activity import Board, Word
from holdfast.display import shown
from holdfast.job import Job, Result, looks
from holdfast.memory import Known
from holdfast.method import names
from holdfast.opening import located
from holdfast.problem import Problem
from holdfast.recipe import ORGANISM, Recipe, dump
from holdfast.record import Cell, Manifest, cell_name
from holdfast.run import Run

Executor = Literal["local", "ray"]
Hear = Callable[[Word], None]
SEARCH = "search"
"""How the names begin of what a search has written into the run of its own audit, before that began."""


def run(
    recipe: Recipe,
    folder: Path,
    console: Console,
    processes: int | None = None,
    keep_answers: bool = False,
    keep_weights: bool = False,
    executor: Executor = "local",
    gpus_per_cell: float | None = None,
) -> Run:
    """Run whatever of the audit is not done yet.

    Args:
        processes: hardenings, and then cells, at a time; the number of cores unless given (with a GPU, 1; on Ray, as many
            cells as fit).
        executor: `local` runs cells in processes here, `ray` on a Ray cluster; their records are the same.
        gpus_per_cell: on Ray; may be a fraction.

    Raises:
        Problem: the folder holds another audit, or something the recipe names cannot be used. A folder made by this call is
            deleted again, unless a hardening was finished or the first cell begun.
        KeyboardInterrupt: passed on after the cells in flight were stopped; what is finished stays.
    """
    _refuse_options(executor, keep_weights, gpus_per_cell)
    torch.set_num_threads(1)  # building and hardening too: weights then do not depend on who else computes
    audit = Run(folder)
    with disk.explained(folder):
        _refuse_another(audit, recipe)
    seen = prepare.look_over(recipe)
    fresh = not any((folder / name).exists() for name in ("recipe.json", SEARCH))
    with disk.alone(disk.private(folder)):
        folder.chmod(0o700)  # it may have been there, empty
        begun = False
        try:
            with shown(console, folder, workers(processes) if executor == "local" else None) as board:
                audit.write("recipe.json", dump(recipe))
                working.prepare(["holdfast.warm", "holdfast.hardened", "holdfast.job", *_shipped(recipe)])
                kept = _kept(keep_answers, keep_weights)
                manifest = prepare.prepared(recipe, audit, board, kept, seen, workers(processes))
                jobs = _jobs(recipe, audit, manifest, keep_answers, keep_weights)
                begun, todo = True, _todo(audit, jobs, board)
                if executor == "local":
                    todo = _told(todo, workers(processes), board)
                board.doing("attacking", looks={one.name: looks(one) for one in recipe.attacks})
                each = _each(executor, processes, gpus_per_cell, board)
                _run_cells(audit, partial(each, partial(_work, _installed()), todo), board)
        except Problem:
            made = any((folder / "subjects" / f"{subject.name}.json").is_file() for subject in recipe.subjects)
            if fresh and not made and not begun:
                shutil.rmtree(folder, ignore_errors=True)
            raise
    return audit


def refuse_unguarded(recipe: Recipe, keep_weights: bool, guarded: bool) -> None:
    """Raises `Problem` where weights of a model that is no organism would be kept, and nobody said to guard them."""
    made = all((subject.model or "").startswith(ORGANISM) for subject in recipe.subjects)
    if keep_weights and not made and not guarded:
        raise Problem("--keep-weights writes out models whose safety was undone; add --i-will-guard-broken-weights")


def _shipped(recipe: Recipe) -> list[str]:
    """The modules of its methods but for files of somebody's own, and of all evals: some of them score every cell."""
    attacks = {("attacks", one.method) for one in recipe.attacks}
    defenses = {("defenses", one.harden.method) for one in recipe.subjects if one.harden}
    evals = {("evals", name) for name in names("evals")}
    return sorted(f"holdfast.{room}.{name}" for room, name in attacks | defenses | evals if not name.endswith(".py"))


def _refuse_options(executor: Executor, keep_weights: bool, gpus_per_cell: float | None) -> None:
    if executor == "ray" and keep_weights:
        raise Problem("--keep-weights: only this machine may write them; leave it out, or leave out --executor ray")
    if executor == "local" and gpus_per_cell is not None:
        raise Problem("--gpus-per-cell: cells on this machine share its GPUs as they are; add --executor ray")
    if gpus_per_cell is not None and not (0 <= gpus_per_cell <= 1 or gpus_per_cell in range(1, 1000)):
        raise Problem(f"--gpus-per-cell {gpus_per_cell:g}: give a share from 0 to 1, or a whole number")


def _refuse_another(audit: Run, recipe: Recipe) -> None:
    if (audit.folder / "recipe.json").is_file():
        if audit.read("recipe.json") != dump(recipe):
            raise Problem(
                f"{audit.folder}: holds the audit of another recipe; choose another --out or delete that folder"
            )
    elif audit.folder.is_dir() and any(not path.name.startswith((".", SEARCH)) for path in audit.folder.iterdir()):
        raise Problem(f"{audit.folder}: not empty, and not an audit's folder; choose another --out")


def _jobs(recipe: Recipe, audit: Run, manifest: Manifest, keep_answers: bool, keep_weights: bool) -> list[Job]:
    """Every cell of the audit, in the order in which they are begun."""
    corpus = policy.prompts(Path(manifest.corpus["file"]))
    attacker, judge = corpus.hand("attacker"), corpus.hand("judge").asked(recipe.prompts)
    subjects = {facts.name: facts for facts in manifest.subjects}
    return [
        Job(
            recipe=recipe,
            subject=facts.name,
            attack=attack.name,
            seed=seed,
            folder=located(facts.folder),
            base=Path(facts.base) if facts.base else None,
            undefended=located(subjects[facts.twin or facts.name].folder),
            attacker=attacker,
            judge=judge,
            keep_answers=keep_answers,
            weights=audit.folder / "weights" / cell_name(facts.name, attack.name, seed) if keep_weights else None,
        )
        for attack in manifest.attacks
        for seed in attack.seeds
        for facts in manifest.subjects
    ]


def _todo(audit: Run, jobs: list[Job], board: Board) -> list[Job]:
    """The jobs without a result. What is left of theirs is cleared away; a damaged record is named and moved aside."""
    todo = []
    for job in jobs:
        if says := audit.damaged(job.name):
            board.tell(f"damaged: {says}; moved to {audit.set_aside(job.name)}, the cell is run again")
        found = audit.cell(job.name)
        if found is None or found.status == "failed":
            audit.forget(job.name)
            todo.append(job)
    if len(todo) < len(jobs):
        board.tell(f"{len(jobs) - len(todo)} of {len(jobs)} cells are done already; {len(todo)} to go")
    return todo


def _each(executor: Executor, processes: int | None, gpus: float | None, board: Board) -> Callable[..., None]:
    """What runs jobs, given what a job does, the jobs, and what becomes of those that are done and those that died. Cells on
    a cluster are not heard meanwhile."""
    if executor == "ray":
        return partial(cluster.each, processes, gpus)
    return partial(working.each, workers(processes), heard=board.hear)


def workers(processes: int | None) -> int:
    """How many processes run here at a time."""
    return processes or (1 if torch.cuda.is_available() else os.cpu_count() or 1)


def _told(jobs: list[Job], most: int, board: Board) -> list[Job]:
    """The jobs with what their subjects say before any attack, asked once where several cells begin with it."""
    cells, known = Counter(job.subject for job in jobs), {}
    first = {job.subject: job for job in reversed(jobs) if cells[job.subject] > 1}

    def done(job: Job, said: Known) -> None:
        known[job.subject] = said
        board.end(job.subject)

    board.doing("asking")
    working.each(most, _ask, [*first.values()], done, lambda job, *_: board.end(job.subject), board.hear)
    return [replace(job, known=known.get(job.subject, {})) for job in jobs]


def _ask(job: Job, hear: Hear) -> Known:
    hear(Word(job.subject))
    return job.start()


class Worked(NamedTuple):
    """What a cell's process hands back."""

    result: Result | Problem
    """A problem is no attack's failure: it stops the audit."""
    seconds: float


def _run_cells(audit: Run, each: Callable[..., None], board: Board) -> None:
    """Run the cells and write their records, here alone."""

    def save(job: Job, finished: Cell, rows: list[dict[str, Any]], seconds: float | None = None) -> None:
        try:
            audit.save(finished, rows, seconds)
        except Problem as problem:
            remedy = "free some space there; the same command goes on from here"
            raise Problem(
                f"{audit.folder}: the record of cell {job.name} could not be written ({problem}); {remedy}"
            ) from problem
        board.end(job.name)

    def done(job: Job, worked: Worked) -> None:
        if isinstance(worked.result, Problem):
            raise worked.result
        save(job, *worked.result, worked.seconds)

    def died(job: Job, reason: str, last: bool) -> None:
        board.end(job.name)
        if last:
            save(job, *job.failed(reason))
        else:
            board.tell(f"{job.subject} under {job.attack}, seed {job.seed}: {reason}; it is tried once more")

    each(done, died)


def _work(versions: dict[str, str], job: Job, hear: Hear = lambda _: None) -> Worked:
    """What a cell's process does, wherever it is."""
    began = time.monotonic()
    hear(Word(job.name))
    if differs := {name: version for name, version in _installed().items() if version != versions.get(name)}:
        name, version = next(iter(differs.items()))
        where = f"{platform.node()}: has {name} {version} where the audit began with {versions.get(name)}"
        return Worked(Problem(f"{where}; install the same on every node"), 0.0)
    try:
        result: Result | Problem = job.run(lambda position: hear(Word(job.name, position)))
    except Problem as problem:
        result = problem
    return Worked(result, round(time.monotonic() - began, 3))


def _installed() -> dict[str, str]:
    return {"holdfast": holdfast.__version__, **prepare.versions()}


def _kept(keep_answers: bool, keep_weights: bool) -> str:
    answers = (
        "answers are kept in the cells' Parquet files"
        if keep_answers
        else "answers were kept as hashes and scores only"
    )
    weights = "attacked weights are kept" if keep_weights else "attacked weights were never written out"
    return f"{weights}; {answers}; folders are 0700 and files 0600"
