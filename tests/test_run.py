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
