"""What the tests of models share: tiny checkpoints, made once a run, when first asked for."""

import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from functools import cache

import pytest

import tiny
from holdfast import method, processes
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
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tiny.Made]:
    """Of an architecture's name, its base and its aligned checkpoint. Nobody writes into them.

    The processes of one run share them: to teach fifteen models takes each of them a good while.
    """
    own = tmp_path_factory.getbasetemp()
    root = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "checkpoints"
    root.mkdir(exist_ok=True)

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
