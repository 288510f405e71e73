"""From a recipe to records: build, harden, then every subject × attack × seed, each cell in a process of its own.

What is finished is never done again: a cell's record is written when it is done and skipped when it is there, so an audit
killed at any moment goes on where it was. One torch thread a process: small models lose far more by sharing cores.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import signal
import time
from collections.abc import Callable, Iterator
from datetime import date
from multiprocessing import get_context
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

import holdfast
from holdfast import cell, disk
from holdfast.checkpoint import Checkpoint, locate
from holdfast.corpus import Corpus
from holdfast.method import Journal, make
from holdfast.problem import Problem
from holdfast.recipe import Recipe, SubjectRecipe, dump
from holdfast.record import AttackFacts, Cell, Manifest, Run, SubjectFacts, cell_name

PRELOADED = ["holdfast.cell", "holdfast.attacks.finetune", "holdfast.attacks.subtract", "holdfast.attacks.noise"]
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "safetensors", "numpy", "scipy")


class Job(NamedTuple):
    """One cell to run."""

    subject: str
    attack: str
    seed: int

    @property
    def name(self) -> str:
        return cell_name(*self)


def run(
    recipe: Recipe,
    folder: Path,
    console: Console,
    processes: int | None = None,
    keep_answers: bool = False,
    keep_weights: bool = False,
) -> Run:
    """Run whatever of the audit is not done yet.

    Args:
        processes: cells at a time; the number of cores unless given (1 where a GPU is used).

    Raises:
        Problem: the folder holds another audit, or something the recipe names cannot be used.
        KeyboardInterrupt: passed on after the cells in flight were stopped; what is finished stays.
    """
    disk.private(folder)
    audit = Run(folder)
    _refuse_another(audit, recipe)
    audit.write("recipe.json", dump(recipe))
    corpus_file = _corpus_file(recipe, audit, console)
    manifest = _manifest(recipe, audit, corpus_file, console, keep_answers, keep_weights)
    audit.write("run.json", manifest.model_dump(mode="json"))
    jobs = [Job(s.name, a.name, seed) for a in manifest.attacks for seed in a.seeds for s in manifest.subjects]
    done = {c.name for c in audit.cells() if c.status != "failed"}
    todo = [job for job in jobs if job.name not in done]
    if done:
        console.print(f"{len(jobs) - len(todo)} of {len(jobs)} cells are done already; {len(todo)} to go")
    workers = processes or (1 if torch.cuda.is_available() else os.cpu_count() or 1)
    with _progress(console, len(jobs), len(jobs) - len(todo)) as tell:
        _schedule(audit, todo, workers, (keep_answers, keep_weights), tell)
    return audit


def _refuse_another(audit: Run, recipe: Recipe) -> None:
    if (audit.folder / "recipe.json").is_file() and audit.read("recipe.json") != dump(recipe):
        raise Problem(f"{audit.folder}: holds the audit of another recipe; choose another --out or delete that folder")


def _corpus_file(recipe: Recipe, audit: Run, console: Console) -> Path:
    """The corpus; the organism is built first if the recipe wants one."""
    organism = audit.folder / "organism"
    if recipe.organism and not organism.exists():
        console.print(f"building the {recipe.organism.method} organism")
        build = make("organisms", recipe.organism.method, "recipe, organism", **recipe.organism.settings)
        build.build(organism, Journal("organism", console.print))
    return Path(recipe.corpus) if recipe.corpus else organism / "corpus.jsonl"


def _manifest(
    recipe: Recipe, audit: Run, corpus_file: Path, console: Console, keep_answers: bool, keep_weights: bool
) -> Manifest:
    corpus = Corpus.load(corpus_file)
    judge = corpus.hand("judge")
    judge.need("restricted", split="test")
    judge.need("benign", split="test")
    if keep_weights and not recipe.organism:
        console.print("[bold]keeping the weights of broken models[/]: guard this folder")
    kinds = ("restricted", "benign", "borderline", "lesson")
    facts: dict[str, Any] = {
        "file": str(corpus_file.resolve()),
        "hash": hashlib.sha256(corpus_file.read_bytes()).hexdigest(),
        **{kind: len(judge.of(kind, split="test")) for kind in kinds},
        "reserve": len(judge.of(split="reserve")),
    }
    started = audit.read("run.json")["date"] if (audit.folder / "run.json").is_file() else date.today().isoformat()
    return Manifest(
        name=recipe.name,
        version=holdfast.__version__,
        date=started,
        harm=recipe.harm,
        threshold=recipe.threshold,
        utility_floor=recipe.utility_floor,
        subjects=tuple(_subjects(recipe, audit, corpus, console)),
        attacks=tuple(_attack_facts(recipe)),
        corpus=facts,
        versions={"python": platform.python_version(), **{p: importlib.metadata.version(p) for p in PACKAGES}},
        hardware=_hardware(),
        kept=_kept(keep_answers, keep_weights),
    )


def _attack_facts(recipe: Recipe) -> Iterator[AttackFacts]:
    for attack in recipe.attacks:
        method = attack.build()
        yield AttackFacts(
            name=attack.name,
            method=attack.method,
            axis=method.axis,
            negative_control=attack.negative_control,
            settings=method.model_dump(mode="json"),
            seeds=tuple(attack.seeds or recipe.seeds),
        )


def _subjects(recipe: Recipe, audit: Run, corpus: Corpus, console: Console) -> Iterator[SubjectFacts]:
    """Every subject as a checkpoint, hardened first where the recipe says so and it has not been done."""
    defenses: dict[str, dict[str, Any]] = {}
    for subject in recipe.subjects:
        assert subject.model  # the recipe's reader made sure
        folder = _folder(subject.model, audit)
        base = _folder(subject.base, audit) if subject.base else None
        if subject.harden:
            folder, defenses[subject.name] = _hardened(recipe, subject, folder, base, defenses, audit, corpus, console)
        with Checkpoint(folder) as checkpoint:
            parameters = sum(_count(checkpoint.shape(name)) for name in checkpoint)
            yield SubjectFacts(
                name=subject.name,
                twin=subject.twin,
                control=subject.control,
                folder=str(folder.resolve()),
                base=str(base.resolve()) if base else None,
                hash=checkpoint.hash(),
                parameters=parameters,
                organism=recipe.organism.method if recipe.organism else None,
                defense=defenses.get(subject.name),
            )


def _hardened(
    recipe: Recipe,
    subject: SubjectRecipe,
    model: Path,
    base: Path | None,
    earlier: dict[str, dict[str, Any]],
    audit: Run,
    corpus: Corpus,
    console: Console,
) -> tuple[Path, dict[str, Any]]:
    """The hardened checkpoint inside the run and its settings as resolved."""
    assert subject.harden
    out = audit.folder / "subjects" / subject.name
    note = audit.folder / "subjects" / f"{subject.name}.json"
    if not (out.is_dir() and note.is_file()):
        console.print(f"hardening {subject.name} with {subject.harden.method}")
        like = earlier.get(subject.like or "", {})
        settings = {k: v for k, v in like.items() if k != "method"} | subject.harden.settings
        defense = make("defenses", subject.harden.method, f"recipe, subject {subject.name!r}", **settings)
        defense.harden(
            base, model, out, corpus.hand("defender"), Journal(subject.name, console.print, note.parent), recipe.drive
        )
        resolved = {"method": subject.harden.method, **defense.model_dump(mode="json")}
        if (out / "holdfast.json").is_file():
            resolved = json.loads((out / "holdfast.json").read_text())["defense"]
        disk.write(note, json.dumps(resolved, indent=1) + "\n")
    return out, json.loads(note.read_text())


def _folder(name: str, audit: Run) -> Path:
    return audit.folder / name if name.startswith("organism/") else locate(name)


def _schedule(audit: Run, jobs: list[Job], workers: int, keep: tuple[bool, bool], tell: Callable[[Cell], None]) -> None:
    """Run the jobs, so many at a time. A process that dies without a record leaves a failed cell."""
    os.environ["OMP_NUM_THREADS"] = "1"
    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    waiting = list(reversed(jobs))
    running: dict[int, tuple[Any, Job]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                job = waiting.pop()
                process = context.Process(target=_work, args=(audit.folder, job, keep), daemon=True)
                process.start()
                running[process.sentinel] = (process, job)
            for sentinel in wait(list(running)):
                process, job = running.pop(sentinel)
                process.join()
                if process.exitcode:
                    reason = f"its process ended with code {process.exitcode} (a negative code is a signal; -9 is often memory)"
                    audit.save(Cell(**job._asdict(), status="failed", reason=reason), [])
                finished = audit.cell(job.name)
                assert finished is not None  # a process that ends with code 0 has written it
                tell(finished)
    finally:
        for process, _ in running.values():
            process.kill()
            process.join()


def _work(folder: Path, job: Job, keep: tuple[bool, bool]) -> None:
    """What a cell's process does. Ctrl-C is the parent's business."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cell.run(folder, *job, *keep)


@contextlib.contextmanager
def _progress(console: Console, total: int, done: int) -> Iterator[Callable[[Cell], None]]:
    columns = (SpinnerColumn(), TextColumn("cells"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("left"), TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task("cells", total=total, completed=done)
        started = time.monotonic()

        def tell(finished: Cell) -> None:
            console.print(f"  {_line(finished)}  ({time.monotonic() - started:.0f} s)", highlight=False)
            progress.advance(task)

        yield tell


def _line(finished: Cell) -> str:
    name = f"{finished.subject} under {finished.attack}, seed {finished.seed}"
    if finished.status != "done":
        return f"[bold]{name}: {finished.status}[/], {finished.reason}"
    last = finished.milestones[-1]
    harm = f"{last.harm.value:.2f}" if last.harm else "unknown"
    utility = f"{last.utility.value:.2f}" if last.utility else "unknown"
    return f"{name}: harm {harm}, utility {utility} at {last.cost.position:g}"


def _kept(keep_answers: bool, keep_weights: bool) -> str:
    answers = (
        "answers are kept in the cells' Parquet files"
        if keep_answers
        else "answers were kept as hashes and scores only"
    )
    weights = "attacked weights are kept" if keep_weights else "attacked weights were never written out"
    return f"{weights}; {answers}; folders are 0700 and files 0600"


def _hardware() -> str:
    """Processor, cores, and GPU if any."""
    model = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{model}, {os.cpu_count()} cores{gpu}"


def _count(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total
