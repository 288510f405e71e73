"""What the tests of models share: tiny checkpoints, made once a run, when first asked for."""

import copy
import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import tiny
from holdfast import lm, method, processes
from holdfast.corpus import Corpus

SERVED = [
    *(f"holdfast.{name}" for name in ("warm", "hardened", "job", "watched", "relearning")),
    *("holdfast.attacks.finetune", "holdfast.defenses.lox"),
    *(f"holdfast.evals.{name}" for name in method.names("evals")),
]
"""What the audits of the tests need again and again."""


@pytest.fixture(scope="session", autouse=True)
def _one_server() -> Iterator[None]:
    """The server that the first audit starts is that of all later ones in this process: it imports what any of them needs.

    Else each cell of the later ones would import the trainers for itself.
    """
    prepare = processes.prepare

    def prepared(modules: Sequence[str]) -> None:
        prepare([*modules, *SERVED])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(processes, "prepare", prepared)
        yield


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the checkpoints of the processes of one run lie."""
    own = tmp_path_factory.getbasetemp()
    root = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "checkpoints"
    root.mkdir(exist_ok=True)
    return root


@pytest.fixture(scope="session", autouse=True)
def _read_once(root: Path) -> Iterator[None]:
    """Of the checkpoints that nobody writes into, each is read from its files once: who loads it again is given a copy."""
    read, kept = lm.loaded, {}

    def loaded(folder: Path, *how: Any, **more: Any) -> Any:
        if how or more or root not in folder.parents:
            return read(folder, *how, **more)
        if folder not in kept:
            kept[folder] = read(folder)
        return copy.deepcopy(kept[folder])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lm, "loaded", loaded)
        yield


@pytest.fixture(scope="session")
def checkpoint(root: Path) -> Callable[[str], tiny.Made]:
    """Of an architecture's name, its base and its aligned checkpoint. Nobody writes into them.

    The processes of one run share them: to teach fifteen models takes each of them a good while.
    """

    def make(architecture: str) -> tiny.Made:
        folder, aside = root / architecture, root / f".{architecture}"
        with open(f"{aside}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.is_dir():
                tiny.make(architecture, aside)
                aside.rename(folder)
        return tiny.Made(folder / "base", folder / "aligned")

    return cache(make)


@pytest.fixture(scope="session")
def corpus() -> Corpus:
    return tiny.corpus()
