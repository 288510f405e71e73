"""A run's folder read back: what is damaged is named, never a traceback. (What it holds whole: test_cell.py, test_audit.py.)"""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import runs
from holdfast import seal
from holdfast.problem import Problem
from holdfast.record import Cell, Cost, Milestone
from holdfast.reread import NAME, Kept, keep, stamp
from holdfast.run import Run
from holdfast.tables import Tables

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


@pytest.mark.parametrize("steps", [-1, 10**400], ids=["negative", "beyond all"])
def test_counts_that_nothing_can_count_are_damage(tmp_path: Path, steps: int) -> None:
    run, path = Run(tmp_path), tmp_path / f"cells/{CELL.name}.json"
    run.save(CELL.model_copy(update={"milestones": (Milestone(cost=Cost(steps=5), status="answers"),)}), [])
    assert [look.cost.steps for cell in run.cells() for look in cell.milestones] == [5]
    kept = json.loads(path.read_text())
    (look,) = kept["milestones"]
    path.write_text(json.dumps(kept | {"milestones": [look | {"cost": {"steps": steps}}]}))
    with pytest.raises(Problem, match=rf"cells/{CELL.name}.json: not a cell's record; .*again"):
        run.cell(CELL.name)


@pytest.mark.parametrize("settings", [{"learning_rate": {}}, {"learning_rate": 10**400}, {"stages": 3}])
def test_settings_that_checks_cannot_compute_with_are_damage(tmp_path: Path, settings: dict[str, Any]) -> None:
    told = runs.manifest([runs.subject("twin")], [runs.attack("tune")]).model_dump(mode="json")
    run = Run(tmp_path)
    run.write("run.json", told)
    assert run.manifest().attacks[0].name == "tune"
    told["attacks"][0]["settings"] |= settings
    run.write("run.json", told)
    with pytest.raises(Problem, match=r"run\.json, attacks\.0\.settings: not a run's manifest"):
        run.manifest()


def test_a_name_that_no_folder_can_have(tmp_path: Path) -> None:
    with pytest.raises(Problem, match="not a run"):
        Run.open(tmp_path / ("x" * 5000))


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
    monkeypatch.setattr("holdfast.run.MANY", 1)
    found = list(run.measured())
    assert [(cell.name, dict(table.scores(0, "harm"))) for cell, table in found] == here
    assert here[1] == ("lox.b.0", {"p0": 1.0, "p1": 0.0, "p2": 1.0})
    assert len({id(table.layout) for _, table in found}) == 1
    (tmp_path / "cells/lox.d.0.parquet").write_bytes(b"PAR1")
    with pytest.raises(Problem, match=r"lox\.d\.0\.parquet: damaged"):
        list(run.measured())


@pytest.mark.parametrize("twice", ["harm", "milestone"])
def test_a_column_that_stands_there_twice_is_damage(tmp_path: Path, twice: str) -> None:
    run = Run(tmp_path)
    run.save(CELL, [{"milestone": 0, "id": "a", "harm": 0.5}])
    file = tmp_path / f"cells/{CELL.name}.parquet"
    whole = pq.read_table(file)
    pq.write_table(whole.append_column(twice, whole[twice]), file)
    for read in (lambda: run.rows(CELL.name), lambda: list(run.measured())):
        with pytest.raises(Problem, match=r"parquet: damaged.*twice"):
            read()


def _read(run: Run) -> list[tuple[str, dict[str, float]]]:
    return [(cell.name, dict(table.scores(0, "harm"))) for cell, table in run.measured(remember=True)]


class TestCellsThatWereRead:
    """What was read of a large run is kept, and taken again as long as the files are the same."""

    @pytest.fixture
    def run(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
        monkeypatch.setattr("holdfast.run.MANY", 1)
        monkeypatch.setattr("holdfast.processes.stream", lambda work, job: work(job))  # here: to start one takes long
        run = Run(tmp_path)
        _scored(run, ["a", "b", "c"])
        failed = CELL.model_copy(update={"attack": "d"})
        run.save(failed, [])
        return run

    def test_they_are_the_same_again(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        looks = tuple(Milestone(cost=Cost(steps=5 * n, seconds=0.1 + n), status="answers", moved=0.3) for n in range(2))
        run.save(
            CELL.model_copy(update={"attack": "e", "milestones": looks}), [{"milestone": 1, "id": "p", "harm": 1 / 3}]
        )
        first, before = _read(run), [*run.measured()]
        assert first == [("lox.a.0", {"p0": 0, "p1": 1, "p2": 0}), ("lox.b.0", {"p0": 1, "p1": 0, "p2": 1}),
                         ("lox.c.0", {"p0": 0, "p1": 1, "p2": 0}), ("twin.d.0", {}), ("twin.e.0", {})]  # fmt: skip
        kept = (run.folder / NAME).stat().st_mtime_ns
        monkeypatch.setattr(Run, "_read", None)  # nothing is read but what was kept
        again = [*run.measured(remember=True)]
        assert [cell for cell, _ in again] == [cell for cell, _ in before]
        assert [cell.model_fields_set for cell, _ in again] == [cell.model_fields_set for cell, _ in before]
        assert again[4][1].scores(1, "harm") == before[4][1].scores(1, "harm") == {"p": 1 / 3}
        assert again[0][1].layout is again[1][1].layout
        assert (run.folder / NAME).stat().st_mtime_ns == kept  # all was known

    def test_a_file_that_is_another_now_is_read_anew(self, run: Run) -> None:
        first = dict(_read(run))
        _scored(run, ["x"])
        other = (run.folder / "cells/lox.b.0.parquet").read_bytes()
        file = run.folder / "cells/lox.a.0.parquet"
        told = file.stat()
        file.write_bytes(other)
        os.utime(file, ns=(told.st_atime_ns, told.st_mtime_ns))  # as whoever alters a file unseen
        assert dict(_read(run)) == first | {"lox.a.0": first["lox.b.0"], "lox.x.0": first["lox.a.0"]}
        (run.folder / "cells/lox.b.0.json").unlink()
        assert [name for name, _ in _read(run)] == ["lox.a.0", "lox.c.0", "lox.x.0", "twin.d.0"]

    @pytest.mark.parametrize("ending", ["json", "timing.json", "parquet"])
    @pytest.mark.parametrize("content", [b"PAR1", b""])
    def test_a_file_that_was_damaged_since_is_named(self, run: Run, ending: str, content: bytes) -> None:
        _read(run)
        (run.folder / f"cells/lox.c.0.{ending}").write_bytes(content)
        with pytest.raises(Problem, match=r"lox\.c\.0\.[a-z.]+: (damaged|not a cell)"):
            _read(run)

    @pytest.mark.parametrize("place", [0, 40, -40])
    def test_a_damaged_one_counts_for_nothing(self, run: Run, place: int) -> None:
        first = _read(run)
        content = bytearray((run.folder / NAME).read_bytes())
        content[place] ^= 1
        (run.folder / NAME).write_bytes(content)
        assert Kept.open(run.folder, Tables()) is None
        assert _read(run) == first
        kept = Kept.open(run.folder, Tables())
        assert kept and len(kept) == 4

    @pytest.mark.parametrize("record", [b"", b"{}", b'{"subject": 1}', CELL.model_dump_json().encode()])
    def test_what_is_no_record_of_that_cell_counts_for_nothing(self, run: Run, record: bytes) -> None:
        first = _read(run)
        self.lie(run, lambda name: record)
        before = (run.folder / NAME).read_bytes()
        assert _read(run) == first
        assert (run.folder / NAME).read_bytes() != before  # and is replaced

    @pytest.mark.parametrize("where", [[10**30], [1e300], [float("inf")], [-1], ["a"], [0, 7], [99]])
    def test_a_layout_that_somebody_made_up_counts_for_nothing(self, run: Run, where: list[Any]) -> None:
        first = _read(run)
        self.rewritten(run, lambda told: [one[0][3].__setitem__(slice(None), where) for one in told["layouts"] if one])
        assert Kept.open(run.folder, Tables()) is None
        assert _read(run) == first

    def test_texts_that_lie_elsewhere_in_memory_count_for_nothing(self, run: Run) -> None:
        """Else whoever wrote the file could end the process that reads it."""
        first = _read(run)
        self.rewritten(run, lambda told: told)  # without compression
        told = np.cumsum([0, *map(len, run.names())], dtype=np.int32)
        content = (run.folder / NAME).read_bytes()[32:]
        assert content.count(told.tobytes()) == 1
        content = content.replace(told.tobytes(), np.append(told[:1], told[1:] + 2**30).astype(np.int32).tobytes())
        (run.folder / NAME).write_bytes(hashlib.sha256(content).digest() + content)
        assert Kept.open(run.folder, Tables()) is None
        assert _read(run) == first

    def rewritten(self, run: Run, change: Callable[[dict[str, Any]], Any]) -> None:
        with pa.ipc.open_file(pa.BufferReader((run.folder / NAME).read_bytes()[32:])) as file:
            table = file.read_all()
        told = json.loads(table.schema.metadata[b"layouts"])
        change(told)
        self.put(run, table.replace_schema_metadata({"layouts": json.dumps(told)}))

    def put(self, run: Run, table: pa.Table) -> None:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, table.schema) as file:
            file.write_table(table)
        content = sink.getvalue().to_pybytes()
        (run.folder / NAME).write_bytes(hashlib.sha256(content).digest() + content)

    def test_a_sealed_run_is_judged_by_its_records_alone(self, run: Run) -> None:
        """Whoever puts scores of his own there changes nothing that is verified, sealed or shared."""
        first = _read(run)
        self.lie(run)
        assert [(cell.name, dict(table.scores(0, "harm"))) for cell, table in run.measured()] == first != _read(run)
        (run.folder / seal.NAME).write_text("{}")
        assert _read(run) == first
        assert NAME not in seal._found(run.folder)

    def lie(self, run: Run, record: Callable[[str], bytes] | None = None) -> None:
        """No cell was scored, as what was kept tells it."""
        names, cells = run.names(), {cell.name: cell.model_dump_json().encode() for cell in run.cells()}
        nothing = dict.fromkeys(names, Tables().of_rows([]))
        keep(run.folder, nothing, {name: stamp(run._files(name)) for name in names}, record or cells.__getitem__)
