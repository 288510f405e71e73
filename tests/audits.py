"""Small audits for the tests: a recipe on tiny checkpoints, and attacks of the test's own."""

import contextlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import tiny
from holdfast import auditing, recipe
from holdfast.corpus import Corpus
from holdfast.dossier import Dossier
from holdfast.job import Job
from holdfast.method import find
from holdfast.record import Cell
from holdfast.run import Run

QUIET = Console(quiet=True)
HEAD = """
import os
import signal
import sys
import time
from pathlib import Path
import torch
from holdfast.method import Attack
from holdfast.record import Cost

class Mine(Attack):
    word: str = ""

    def __call__(self, lm, hand, at, seed):
        weight = next(lm.model.parameters()).data
"""
"""The beginning of an attack of one's own; what `attack` is given goes on in `__call__`."""
TUNE = {"method": "finetune", "trainer": "plain", "learning_rate": 1e-3, "batch": 4, "steps": 2}


def attack(folder: Path, name: str, *lines: str) -> str:
    """Write an attack whose `__call__` is these lines; returns how a recipe beside it names it."""
    (folder / f"{name}.py").write_text(HEAD + "".join(f"        {line}\n" for line in lines))
    return f"./{name}.py"


def toml(value: Any) -> str:
    """A value as TOML writes it inline."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml(some)}" for key, some in value.items()) + "}"
    return "[" + ", ".join(map(toml, value)) + "]" if isinstance(value, list) else json.dumps(value)


def write(folder: Path, made: tiny.Made, attacks: list[dict[str, Any]], **changes: Any) -> Path:
    """A recipe on one tiny subject, beside its corpus, with entries changed (None: left out)."""
    tiny.corpus().save(folder / "corpus.jsonl")
    content = {
        "name": "small",
        "corpus": "corpus.jsonl",
        "max_new_tokens": 4,
        "seeds": [0],
        "subjects": [{"name": "twin", "model": str(made.aligned), "base": str(made.base)}],
        "attacks": attacks,
    } | changes
    path = folder / "recipe.toml"
    path.write_text("".join(f"{key} = {toml(value)}\n" for key, value in content.items() if value is not None))
    return path


def run_cell(folder: Path, path: Path, seed: int = 0, keep: tuple[bool, bool] = (False, False)) -> tuple[Cell, Run]:
    """Run the first attack of a recipe on its first subject, in this process."""
    chosen = recipe.load(path)
    run = Run(folder)
    subject, under = chosen.subjects[0], chosen.attacks[0]
    run.write("recipe.json", recipe.dump(chosen))
    asked = job(path, seed, keep_answers=keep[0], weights=folder / "weights/twin.own.0" if keep[1] else None)
    run.save(*asked.run())
    found = run.cell(f"{subject.name}.{under.name}.{seed}")
    assert found is not None and find("attacks", under.method)
    return found, run


def job(path: Path, seed: int = 0, **changes: Any) -> Job:
    """The cell of a recipe's first attack on its first subject."""
    chosen = recipe.load(path)
    subject, corpus = chosen.subjects[0], Corpus.load(Path(chosen.corpus))
    given = {
        "recipe": chosen,
        "subject": subject.name,
        "attack": chosen.attacks[0].name,
        "seed": seed,
        "folder": Path(subject.model),
        "base": Path(subject.base) if subject.base else None,
        "undefended": Path(subject.model),
        "attacker": corpus.hand("attacker"),
        "judge": corpus.hand("judge"),
    }
    return Job(**given | changes)


def run_all(path: Path, out: Path, console: Console = QUIET, **options: Any) -> Run:
    return auditing.run(recipe.load(path), out, console, 2, **options)


def cells(folder: Path) -> dict[str, bytes]:
    """Every finished cell's files but the timings."""
    files = sorted((folder / "cells").glob("[!.]*"))
    return {path.name: path.read_bytes() for path in files if path.is_file() and ".timing" not in path.name}


def timeless(dossier: Dossier) -> str:
    """A dossier as JSON without what was measured in seconds."""

    def without(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: without(some) for key, some in value.items() if key != "seconds"}
        return [*map(without, value)] if isinstance(value, list) else value

    return json.dumps(without(dossier.model_dump(mode="json")))


@contextlib.contextmanager
def mounted(place: Path, pages: int) -> Iterator[Path]:
    """A file system of so many pages of 4 KiB."""
    place.mkdir(exist_ok=True)
    mount = shutil.which("mount") and ["mount", "-t", "tmpfs", "-o", f"size={pages * 4}k", "tmpfs", str(place)]
    if not mount or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)
