"""A run on disk: `recipe.json`, `run.json`, `cells/NAME.json` with `.parquet` and `.timing.json`, `verdict.json`, the page.

JSON for summaries, Parquet for per-prompt rows, seconds in a file of their own, so that equal runs are byte-equal.
Knows no torch.
"""

import json
import os
from collections.abc import Iterator, Sequence
from multiprocessing import current_process
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError
from pydantic_core import from_json

from holdfast import disk, processes, reread
from holdfast.problem import Problem, printable
from holdfast.record import Cell, Manifest, SubjectFacts
from holdfast.reread import Kept
from holdfast.tables import COLUMNS, KEYS, Table, Tables

SEAL = "seal.json"
"""Where a run's seal lies (`seal`)."""
_AHEAD = 512
"""Cells that one process reads while those before them are looked at."""
_OWN = 0.6
"""Share of the cells that were kept which this process makes while a copy makes the others: a record takes 0.12 ms to make, and
0.06 more to hand over."""
MANY = 4000
"""From so many cells on, reading, judging and showing them is worth processes of its own."""


class _Missing(Problem):
    """There is no such file."""


class Run:
    """A run's folder and what lies in it."""

    def __init__(self, folder: Path):
        self.folder = folder

    @classmethod
    def open(cls, folder: Path) -> "Run":
        """An existing run. Raises `Problem` if `folder` is not one."""
        if not os.path.isfile(folder / "recipe.json"):  # which is patient with names that nothing can have
            raise Problem(
                f"{printable(folder)}: not a run (no recipe.json in it); give the folder that `holdfast audit` wrote"
            )
        return cls(folder)

    def read(self, name: str) -> Any:
        """The JSON file `name`. Raises `Problem` if it is missing or damaged."""
        path = f"{self.folder}/{name}"  # a text: of a large run's there are hundreds of thousands
        try:
            with open(path, "rb") as file:
                return from_json(file.read())
        except FileNotFoundError:
            raise _Missing(f"{path}: missing; run `holdfast audit` on this folder first") from None
        except OSError as error:
            raise Problem(
                f"{path}: cannot be read ({error.strerror}); delete it and run `holdfast audit` again"
            ) from error
        except (ValueError, RecursionError) as error:
            raise Problem(f"{path}: damaged JSON ({error}); delete it and run `holdfast audit` again") from error

    def write(self, name: str, content: Any) -> None:
        """Write `content` as JSON, keys in the order given."""
        disk.write(self.folder / name, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")

    def manifest(self) -> Manifest:
        """What was run, with the seconds that hardenings took. Raises `Problem` if `run.json` is missing or damaged."""
        try:
            found = Manifest.model_validate(self.read("run.json"))
        except ValidationError as error:
            where = ".".join(map(str, error.errors()[0]["loc"]))
            raise Problem(f"{self.folder}/run.json, {where}: not a run's manifest; audit again") from error
        return found.model_copy(update={"subjects": tuple(map(self._timed, found.subjects))})

    def _timed(self, subject: SubjectFacts) -> SubjectFacts:
        name = f"subjects/{subject.name}.timing.json"
        if subject.hardening is None or not (self.folder / name).is_file():
            return subject
        timed = subject.hardening.model_copy(update={"seconds": self.read(name)["seconds"]})
        return subject.model_copy(update={"hardening": timed})

    def save(self, cell: Cell, rows: list[dict[str, Any]], whole: float | None = None) -> None:
        """Keep a finished cell: timings, then per-prompt rows, then its JSON, whose presence says that all is there.

        `whole` is what it took from its process's begin to its end, loading and scoring included.
        """
        seconds = [milestone.cost.seconds for milestone in cell.milestones]
        self.write(f"cells/{cell.name}.timing.json", {"seconds": seconds} | ({} if whole is None else {"whole": whole}))
        if rows:
            sink = pa.BufferOutputStream()
            pq.write_table(pa.Table.from_pylist(rows), sink, write_page_checksum=True)
            disk.write(self.folder / f"cells/{cell.name}.parquet", sink.getvalue().to_pybytes())
        content = cell.model_dump(exclude={"milestones": {"__all__": {"cost": {"seconds"}}}})
        self.write(f"cells/{cell.name}.json", content)

    def forget(self, name: str) -> None:
        """Delete whatever there is of a cell: its JSON first, so that half a cell is none."""
        for file in map(Path, self._files(name)):
            file.unlink(missing_ok=True)

    def damaged(self, name: str) -> str | None:
        """What is wrong with a finished cell's files; None where nothing is."""
        try:
            cell = self.cell(name)
            if cell and cell.status == "done" and not self.rows(name):
                return f"{self.folder}/cells/{name}.parquet: missing"
        except Problem as problem:
            return str(problem)
        return None

    def set_aside(self, name: str) -> Path:
        """Move a cell's files out of the way; returns where to."""
        aside = disk.private(self.folder / "cells/damaged")
        for file in map(Path, self._files(name)):
            if file.exists():
                os.replace(file, aside / file.name)
        return aside

    def cell(self, name: str) -> Cell | None:
        """The cell of that name with its timings, or None if it is not finished."""
        try:
            content = self.read(f"cells/{name}.json")
        except _Missing:
            return None
        timing = self.read(f"cells/{name}.timing.json")
        try:
            for milestone, spent in zip(content["milestones"], timing["seconds"], strict=True):
                milestone["cost"]["seconds"] = spent
            cell = Cell.model_validate(content)
            if cell.name != name:
                raise ValueError("another cell's")
            return cell
        except (ValueError, KeyError, TypeError) as error:  # pydantic's is a ValueError
            raise Problem(
                f"{self.folder}/cells/{name}.json: not a cell's record; run `holdfast audit` again"
            ) from error

    def cells(self) -> list[Cell]:
        """All finished cells, by name."""
        return [cell for name in self.names() if (cell := self.cell(name)) is not None]

    def names(self) -> list[str]:
        """Of all finished cells."""
        if not (self.folder / "cells").is_dir():
            return []
        files = os.listdir(self.folder / "cells")
        return sorted(name.removesuffix(".json") for name in files
                      if name.endswith(".json") and ".timing" not in name and not name.startswith("."))  # fmt: skip

    def measured(self, remember: bool = False) -> Iterator[tuple[Cell, Table]]:
        """All finished cells, by name, with their scores, which other processes read ahead where there are many.

        With `remember`, cells that were read before are taken from what was kept of that, where there are many, and if any is
        read now, all are kept: see `reread`. Not of a sealed run: no seal is about what is kept. Raises `Problem` as `cell` and
        `rows`.
        """
        tables, names = Tables(), self.names()
        remember = remember and len(names) >= MANY and not (self.folder / SEAL).exists()
        stamps = {name: reread.stamp(self._files(name)) for name in names} if remember else {}
        kept = Kept.open(self.folder, tables) if remember else None
        unknown = [name for name in names if kept is None or not kept.knows(name, stamps[name])]
        strange, anew, met, stale = {*unknown}, self._anew(unknown, tables), {}, bool(unknown)
        again = _again(kept, [name for name in names if name not in strange]) if kept else iter(())
        for name in names:
            read = None if name in strange else next(again)
            if read is None:
                stale, read = True, next(anew if name in strange else self._anew([name], tables))
            if read:
                yield read
                if remember:
                    met[name] = read
        if stale and remember:
            found = {name: table for name, (_, table) in met.items()}
            reread.keep(self.folder, found, stamps, lambda name: _json(met[name][0]))

    def _anew(self, names: Sequence[str], tables: Tables) -> Iterator[tuple[Cell, Table] | None]:
        """These cells, one by one, from their files; None for one whose file is gone meanwhile."""
        some = [names[start : start + _AHEAD] for start in range(0, len(names), _AHEAD)]
        count = (os.cpu_count() or 1) if len(names) >= MANY and not current_process().daemon else 0
        ahead = [processes.stream(_ahead, (self.folder, some[turn::count])) for turn in range(count)]
        for number, chunk in enumerate(some):
            cells, found = (_next(ahead[number % count]) if count else None) or self._read(chunk, tables)
            for cell, table in zip(cells, tables.shared(found), strict=True):
                yield (cell, table) if cell else None

    def _read(self, names: Sequence[str], tables: Tables) -> "_Read":
        """These cells, with their scores. Raises `Problem` as `cell` and `rows`."""
        cells: list[Cell | None] = []
        found: list[Table] = []
        for name in names:  # all of a cell at once, which an audit may be writing anew
            cells.append(self.cell(name))
            found.append(self._scored(tables, name))
        return cells, found

    def _scored(self, tables: Tables, name: str) -> Table:
        table = self._table(name, (*KEYS, *COLUMNS))
        try:
            return tables.of_rows([]) if table is None else tables.of_table(table)
        except ValueError as error:
            raise self._spoiled(name, error) from error

    def _files(self, name: str) -> list[str]:
        """Of a cell, the one that says that all are there first."""
        return [f"{self.folder}/cells/{name}.{ending}" for ending in ("json", "parquet", "timing.json")]

    def rows(self, name: str) -> list[dict[str, Any]]:
        """A cell's per-prompt rows: one dict a milestone × prompt."""
        table = self._table(name)
        try:
            if table is None or not len(table):
                return []
            Tables().of_table(table)
            return cast(list[dict[str, Any]], table.to_pylist())
        except (pa.ArrowException, ValueError) as error:
            raise self._spoiled(name, error) from error

    def _table(self, name: str, columns: Sequence[str] | None = None) -> pa.Table | None:
        """A cell's file of scores; None where there is none."""
        try:
            with open(f"{self.folder}/cells/{name}.parquet", "rb") as file:
                content = pa.BufferReader(file.read())
            with pq.ParquetFile(content, page_checksum_verification=True) as table:
                known = table.schema_arrow.names
                return table.read(columns and [one for one in columns if one in known], use_threads=False)
        except FileNotFoundError:
            return None
        except (pa.ArrowException, OSError, ValueError) as error:
            raise self._spoiled(name, error) from error

    def _spoiled(self, name: str, error: Exception) -> Problem:
        remedy = "run `holdfast audit` again: it sets the cell aside and runs it anew"
        return Problem(f"{self.folder}/cells/{name}.parquet: damaged ({printable(error)}); {remedy}")


_Read = tuple[list[Cell | None], list[Table]]


def _again(kept: Kept, names: Sequence[str]) -> Iterator[tuple[Cell, Table] | None]:
    """Cells that were kept, in order; None where that is not the record. Of many a copy of this process makes the last."""
    own = round(_OWN * len(names))
    with processes.meanwhile(lambda: [_recorded(kept, name) for name in names[own:]], len(names) >= MANY) as others:
        for name in names[:own]:
            yield (cell, kept.table(name)) if (cell := _recorded(kept, name)) else None
        for name, cell in zip(names[own:], others(), strict=True):
            yield (cell, kept.table(name)) if cell else None


def _recorded(kept: Kept, name: str) -> Cell | None:
    try:
        cell = Cell.model_validate_json(kept.record(name))
    except ValidationError:
        return None
    return cell if cell.name == name else None


def _json(cell: Cell) -> bytes:
    return cell.model_dump_json(exclude_unset=True).encode()


def _ahead(job: tuple[Path, list[Sequence[str]]]) -> Iterator[_Read | Problem]:
    """Lists of a folder's cells, list by list; what a process of its own does. A damaged file ends it."""
    folder, lists = job
    run, tables = Run(folder), Tables()
    try:
        for names in lists:
            with processes.unswept():
                read = run._read(names, tables)
            yield read
    except Problem as problem:
        yield problem


def _next(ahead: Iterator[_Read | Problem]) -> _Read | None:
    """What a process read; None where it died, and the files are to be read here. Raises `Problem` where one is damaged."""
    try:
        with processes.apart():
            found = next(ahead, None)
    except (EOFError, OSError):
        return None
    if isinstance(found, Problem):
        raise found
    return found
