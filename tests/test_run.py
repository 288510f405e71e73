"""A run's folder read back: what is damaged is named, never a traceback. (What it holds whole: test_cell.py, test_audit.py.)"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from holdfast.problem import Problem
from holdfast.record import Cell
from holdfast.run import Run

CELL = Cell(subject="twin", attack="tune", seed=0, status="failed", reason="no memory")


def test_a_cell_comes_back_as_it_was(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.save(CELL, [{"milestone": 0, "id": "a", "harm": 0.5}])
    assert run.cells() == [CELL]
    assert run.rows(CELL.name) == [{"milestone": 0, "id": "a", "harm": 0.5}]
    assert run.cell("another") is None and run.rows("another") == []


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe{", b"[]", b"{}", b"null", b"PAR1"])
@pytest.mark.parametrize(
    ("ending", "read"),
    [("json", Run.cell), ("timing.json", Run.cell), ("parquet", Run.rows)],
    ids=["cell", "time", "rows"],
)
def test_damaged_files_are_named(tmp_path: Path, ending: str, read: Callable[[Run, str], Any], content: bytes) -> None:
    run = Run(tmp_path)
    run.save(CELL, [{"id": "a"}])
    (tmp_path / f"cells/{CELL.name}.{ending}").write_bytes(content)
    with pytest.raises(Problem, match=rf"cells/{CELL.name}.*again"):
        read(run, CELL.name)


def _scored(run: Run, names: list[str]) -> None:
    for number, name in enumerate(names):
        cell = Cell(subject="lox", attack=name, seed=0, status="done")
        rows = [{"milestone": 0, "id": f"p{one}", "harm": (number + one) % 2 / 1} for one in range(3)]
        run.save(cell, rows)


def test_processes_read_the_scores_that_are_read_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, attacks = Run(tmp_path), ["a", "b", "c", "d", "e"]
    _scored(run, attacks)
    monkeypatch.setattr("holdfast.run._AHEAD", 2)
    here = [(cell.name, dict(table.scores(0, "harm"))) for cell, table in run.measured()]
    monkeypatch.setattr("holdfast.run._MANY", 1)
    found = list(run.measured())
    assert [(cell.name, dict(table.scores(0, "harm"))) for cell, table in found] == here
    assert here[1] == ("lox.b.0", {"p0": 1.0, "p1": 0.0, "p2": 1.0})
    assert len({id(table.layout) for _, table in found}) == 1
    (tmp_path / "cells/lox.d.0.parquet").write_bytes(b"PAR1")
    with pytest.raises(Problem, match=r"lox\.d\.0\.parquet: damaged"):
        list(run.measured())
