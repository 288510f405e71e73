"""What was read of a run's per-prompt scores, kept in one file: however small a Parquet file is, opening it takes its time.

Scores are kept under the SHA-256 of the file that they were read from, so that a file that was altered, replaced or damaged since
is read anew. Nothing rests on this file: it may be deleted at any time, no seal is about it, and whoever verifies a run leaves it
alone. Knows no torch.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa

import holdfast
from holdfast import disk
from holdfast.problem import Problem
from holdfast.tables import COLUMNS, Layout, Table

NAME = ".scores.arrow"
"""In the run's folder; hidden, for it is no record."""
_KINDS = (np.dtype(np.uint8), np.dtype(np.float32), np.dtype(np.float64))
"""Of the values: see `tables`."""
_FORMAT = [holdfast.__version__, *COLUMNS]
"""Another version may read a file in another way."""
_DIGEST = 32


class Kept:
    """Scores that were read before, by the SHA-256 of their file."""

    def __init__(
        self, layouts: list[Layout], columns: Mapping[str, np.ndarray], values: np.ndarray, digests: list[bytes]
    ):
        """`values` are the bytes of all cells' scores, one after the other; `columns` say of each cell where its own end, of
        which kind they are and how they are laid out."""
        self._layouts, self._values = layouts, values
        self._kinds, self._laid = columns["kind"], columns["layout"]
        self._ends = np.concatenate([[0], columns["end"]])
        self._rows = dict(zip(digests, range(len(digests)), strict=True))

    @classmethod
    def open(cls, folder: Path) -> Self:
        """What was kept of the run in `folder`; nothing where that cannot be read."""
        try:
            with pa.memory_map(str(folder / NAME)) as file:
                content = file.read_buffer()
            if hashlib.sha256(memoryview(content)[_DIGEST:]).digest() != bytes(memoryview(content)[:_DIGEST]):
                raise ValueError("damaged")
            return cls(*_unpacked(pa.ipc.open_file(content.slice(_DIGEST)).read_all()))
        except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, IndexError):
            return cls([], {name: np.empty(0, dtype=np.int64) for name in ("kind", "layout", "end")}, np.empty(0), [])

    def __len__(self) -> int:
        return len(self._rows)

    def table(self, digest: bytes) -> Table | None:
        """The scores of the Parquet file with that SHA-256; None where it was not read."""
        row = self._rows.get(digest)
        if row is None:
            return None
        own = self._values[self._ends[row] : self._ends[row + 1]]
        return Table(self._layouts[self._laid[row]], own.view(_KINDS[self._kinds[row]]))


def keep(folder: Path, tables: Mapping[bytes, Table]) -> None:
    """Keep these scores beside the run, in place of what was kept; else they are read once more next time."""
    layouts = {id(one.layout): one.layout for one in tables.values()}
    places = {name: place for place, name in enumerate(layouts)}
    values = [np.ascontiguousarray(one.values) for one in tables.values()]
    made = pa.table(
        {
            "digest": pa.array(tables, pa.binary(_DIGEST)),
            "layout": pa.array([places[id(one.layout)] for one in tables.values()], pa.int64()),
            "kind": pa.array([_KINDS.index(one.dtype) for one in values], pa.int64()),
            "values": pa.array([one.tobytes() for one in values], pa.large_binary()),
        }
    ).replace_schema_metadata({"layouts": json.dumps({"format": _FORMAT, "layouts": [*map(_told, layouts.values())]})})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, made.schema) as file:
        file.write_table(made)
    content = memoryview(sink.getvalue())
    try:
        disk.write(folder / NAME, b"".join((hashlib.sha256(content).digest(), content)))
    except (Problem, OSError):
        return


def _told(layout: Layout) -> list[list[Any]]:
    return [[*place, names, where.tolist()] for place, (names, where) in layout.spans.items()]


def _unpacked(table: pa.Table) -> tuple[list[Layout], dict[str, np.ndarray], np.ndarray, list[bytes]]:
    """Raises ValueError where it does not hold together."""
    told = json.loads((table.schema.metadata or {})[b"layouts"])
    if told["format"] != _FORMAT:
        raise ValueError("of another version")
    known: dict[tuple[str, ...], tuple[str, ...]] = {}
    layouts = [Layout(dict(_spans(one, known))) for one in told["layouts"]]
    table = table.combine_chunks()
    columns = {name: table[name].to_numpy() for name in ("kind", "layout")}
    chunk = table["values"].chunk(0)
    _, offsets, data = chunk.buffers()
    ends = np.frombuffer(offsets, dtype=np.int64)[chunk.offset : chunk.offset + len(chunk) + 1]
    values = np.frombuffer(data, dtype=np.uint8)
    sizes = np.array([max((int(where.max()) + 1 for _, where in one.spans.values()), default=0) for one in layouts])
    widths = np.array([kind.itemsize for kind in _KINDS])[columns["kind"]]
    if ends[0] != 0 or (np.diff(ends) < sizes[columns["layout"]] * widths).any() or (np.diff(ends) % widths).any():
        raise ValueError("values are missing")
    return layouts, columns | {"end": ends[1:]}, values, table["digest"].to_pylist()


def _spans(told: list[Any], known: dict[tuple[str, ...], tuple[str, ...]]) -> Iterator[Any]:
    for milestone, column, names, where in told:
        names = tuple(names)
        if column not in COLUMNS or len(names) != len(where) or min(where, default=0) < 0:
            raise ValueError("a layout does not hold together")
        yield (milestone, column), (known.setdefault(names, names), np.array(where, dtype=np.int64))
