"""What the tests of models share: tiny checkpoints, made once a run, when first asked for."""

import fcntl
import os
from collections.abc import Callable
from functools import cache

import pytest

import tiny
from holdfast.corpus import Corpus


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
