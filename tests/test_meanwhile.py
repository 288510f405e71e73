"""Work that is done in a copy of the process, while it goes on itself."""

import gc
import os
import time
from collections.abc import Callable
from pathlib import Path

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


def _done(fate: Callable[[], object], pays: bool = True) -> int:
    with processes.meanwhile(_where(fate), pays) as value:
        return value()


def test_a_copy_does_what_pays() -> None:
    there = [_done(lambda: None) for _ in range(2)]
    assert len({*there}) == 2 and os.getpid() not in there
    assert _done(lambda: None, pays=False) == os.getpid()


@pytest.mark.parametrize("fate", [lambda: os._exit(1), lambda: 1 / 0], ids=["killed", "raised"])
def test_what_a_copy_did_not_do_is_done_here(fate: Callable[[], object]) -> None:
    assert _done(fate) == os.getpid()


def test_a_copy_ends_with_the_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would write its page after an error, perhaps over that of another report."""
    begun, fork = [], os.fork
    monkeypatch.setattr(os, "fork", lambda: begun.append(fork()) or begun[-1])

    def slow() -> None:
        time.sleep(2)
        (tmp_path / "page").write_text("late")

    with pytest.raises(KeyboardInterrupt), processes.meanwhile(slow, pays=True) as value:
        raise KeyboardInterrupt
    with pytest.raises(ProcessLookupError):
        os.kill(begun[0], 0)
    assert callable(value) and not [*tmp_path.iterdir()]


def test_nobody_looks_for_garbage_meanwhile() -> None:
    assert gc.isenabled()
    with processes.unswept():
        with pytest.raises(ZeroDivisionError), processes.unswept():
            1 / 0  # noqa: B018
        assert not gc.isenabled()
    assert gc.isenabled()


def test_what_is_made_beside_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    told = runs.manifest([runs.subject("undefended"), runs.subject("lox", twin="undefended")], [runs.attack("tune")])
    cells = [runs.cell(name, "tune", seed, runs.clock(0.1, 0.7)) for name in ("undefended", "lox") for seed in (0, 1)]

    def judged() -> Dossier:
        return verdict.weigh(Evidence(told, cells, {one.name: runs.rows(one) for one in cells}))

    here = judged()
    monkeypatch.setattr("holdfast.curves.MANY", 1)
    monkeypatch.setattr("holdfast.verdict.MANY", 1)
    assert judged() == here and here.curves and here.checks and here.verdicts[0].reasons
