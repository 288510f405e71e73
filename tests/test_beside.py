"""Work that is done in a copy of the process, while it goes on itself."""

import os
from collections.abc import Callable

import pytest

import runs
from holdfast import processes, verdict
from holdfast.dossier import Dossier
from holdfast.evidence import Evidence


@pytest.fixture(autouse=True)
def cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 2)


def _where(fate: Callable[[], object]) -> Callable[[], int]:
    """Work that says which process did it, where that is not this one after its fate."""
    here = os.getpid()

    def work() -> int:
        if os.getpid() != here:
            fate()
        return os.getpid()

    return work


def test_a_copy_does_what_pays() -> None:
    both = [processes.beside(_where(lambda: None), pays=True) for _ in range(2)]
    found = {wait() for wait in both}
    assert len(found) == 2 and os.getpid() not in found
    assert processes.beside(_where(lambda: None), pays=False)() == os.getpid()


@pytest.mark.parametrize("fate", [lambda: os._exit(1), lambda: 1 / 0], ids=["killed", "raised"])
def test_what_a_copy_did_not_do_is_done_here(fate: Callable[[], object]) -> None:
    assert processes.beside(_where(fate), pays=True)() == os.getpid()


def test_curves_made_beside_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    told = runs.manifest([runs.subject("undefended"), runs.subject("lox", twin="undefended")], [runs.attack("tune")])
    cells = [runs.cell(name, "tune", seed, runs.clock(0.1, 0.7)) for name in ("undefended", "lox") for seed in (0, 1)]

    def judged() -> Dossier:
        return verdict.weigh(Evidence(told, cells, {one.name: runs.rows(one) for one in cells}))

    here = judged()
    monkeypatch.setattr("holdfast.curves._MANY", 1)
    assert judged() == here and here.curves
