"""What was read of a run's cells, kept in one file: however small a file is, opening and decoding it takes its time.

A cell is kept with what the file system says of its files (sizes, times and numbers), so that one that was written, replaced or
removed since is read anew; what changes behind its back is seen by whoever verifies the run. Nothing rests on this file: it may
be deleted at any time, no seal is about it, and whoever verifies a run leaves it alone. Knows no torch.
"""

import hashlib
import json
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import pyarrow as pa

import holdfast
from holdfast import disk
from holdfast.problem import Problem
from holdfast.tables import COLUMNS, Layout, Table, Tables

NAME = ".cells.arrow"
"""In the run's folder; hidden, for it is no record."""
_KINDS = (np.dtype(np.uint8), np.dtype(np.float32), np.dtype(np.float64))
"""Of the values: see `tables`."""
_FORMAT = [holdfast.__version__, *COLUMNS]
"""Another version may read a file in another way."""
_NOTHING = np.empty(0)
_UNREADABLE = (
    *(pa.ArrowException, OSError, ValueError, KeyError, TypeError, IndexError, OverflowError, RecursionError),
)
"""What a file that somebody made up may raise."""
_DIGEST = 32
_STAT = struct.Struct("<QqqQ")
_BATCH = 4096
"""Cells that are decompressed at a time."""
_OWN = ("name", "stamp", "layout", "kind", "values")
_TYPES = (pa.string(), pa.binary(3 * _STAT.size), pa.int64(), pa.int64(), pa.large_binary())
"""Of the columns that are read at once; the record of a cell is read when it is asked for."""
_RECORD = ("record", pa.large_binary())


def stamp(files: Sequence[str]) -> bytes:
    """What the file system says of these files: something else once one of them is written, replaced or removed."""
    return b"".join(map(_told_of, files))


def _told_of(file: str) -> bytes:
    try:
        told = os.stat(file)
    except OSError:
        return _STAT.pack(0, 0, 0, 0)
    return _STAT.pack(told.st_size, told.st_mtime_ns, told.st_ctime_ns, told.st_ino)


class Kept:
    """Cells that were read before."""

    def __init__(self, layouts: list[Layout], own: pa.Table, ends: np.ndarray, values: np.ndarray, records: Any):
        """`own` are all columns but the records; `values` the bytes of all cells' scores, one after the other, each to its end;
        `records` an Arrow file of the records alone."""
        self._layouts, self._ends, self._values, self._records = layouts, ends, values, records
        self._laid, self._kinds = (own[name].to_numpy() for name in ("layout", "kind"))
        self._stamps = own["stamp"].to_pylist()
        self._rows = {name: row for row, name in enumerate(own["name"].to_pylist())}
        self._batch: tuple[int, Any] = (-1, None)

    @classmethod
    def open(cls, folder: Path, tables: Tables) -> Self | None:
        """What was kept of the run in `folder`, laid out as in `tables`; None where that cannot be read."""
        try:
            with pa.memory_map(str(folder / NAME)) as file:
                content = file.read_buffer()
            if hashlib.sha256(memoryview(content)[_DIGEST:]).digest() != bytes(memoryview(content)[:_DIGEST]):
                return None
            layouts, *read = _unpacked(content.slice(_DIGEST))
            return cls([one.layout for one in tables.shared([Table(one, _NOTHING) for one in layouts])], *read)
        except _UNREADABLE:
            return None

    def __len__(self) -> int:
        return len(self._rows)

    def knows(self, name: str, stamp: bytes) -> bool:
        """Whether that cell was read, and its files are those that were read."""
        row = self._rows.get(name)
        return row is not None and self._stamps[row] == stamp

    def table(self, name: str) -> Table:
        """The scores of a cell that is known."""
        row = self._rows[name]
        own = self._values[self._ends[row] : self._ends[row + 1]].view(_KINDS[self._kinds[row]])
        return Table(self._layouts[self._laid[row]], own)

    def record(self, name: str) -> bytes:
        """Its record, as JSON. Those that stand beside each other are best asked for one after the other."""
        number, place = divmod(self._rows[name], _BATCH)
        if self._batch[0] != number:
            self._batch = number, self._records.get_batch(number).column(0)
        return cast(bytes, self._batch[1][place].as_py())


def keep(
    folder: Path, tables: Mapping[str, Table], stamps: Mapping[str, bytes], record: Callable[[str], bytes]
) -> None:
    """Keep cells by name beside the run, in place of what was kept; else they are read once more next time. `record` makes the
    JSON of each."""
    layouts = {id(one.layout): one.layout for one in tables.values()}
    told = json.dumps({"format": _FORMAT, "layouts": [*map(_told, layouts.values())]})
    places = {name: place for place, name in enumerate(layouts)}
    sink, names = pa.BufferOutputStream(), iter(tables)
    schema = pa.schema([*zip(_OWN, _TYPES, strict=True), _RECORD], {"layouts": told})
    with pa.ipc.new_file(sink, schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as file:
        while some := list(islice(names, _BATCH)):
            values = [np.ascontiguousarray(tables[name].values) for name in some]
            columns = (
                some,
                [stamps[name] for name in some],
                [places[id(tables[name].layout)] for name in some],
                [_KINDS.index(one.dtype) for one in values],
                [one.tobytes() for one in values],
                [record(name) for name in some],
            )
            arrays = [pa.array(column, kind) for column, kind in zip(columns, schema.types, strict=True)]
            file.write_batch(pa.record_batch(arrays, schema=schema))
    content = memoryview(sink.getvalue())
    try:
        disk.write(folder / NAME, b"".join((hashlib.sha256(content).digest(), content)))
    except (Problem, OSError):
        return


def _told(layout: Layout) -> list[list[Any]]:
    return [[*place, names, where.tolist()] for place, (names, where) in layout.spans.items()]


def _unpacked(content: pa.Buffer) -> tuple[list[Layout], pa.Table, np.ndarray, np.ndarray, Any]:
    """What makes a `Kept`. Raises ValueError where it does not hold together."""
    own, records = (
        pa.ipc.open_file(content, options=pa.ipc.IpcReadOptions(use_threads=False, included_fields=some))
        for some in ([*range(len(_OWN))], [len(_OWN)])
    )
    told = json.loads((own.schema.metadata or {})[b"layouts"])
    if told["format"] != _FORMAT or own.schema.types != [*_TYPES]:
        raise ValueError("of another version")
    known: dict[tuple[str, ...], tuple[str, ...]] = {}
    layouts = [Layout(dict(_spans(one, known))) for one in told["layouts"]]
    table = own.read_all()
    table.validate(full=True)  # else whoever wrote the file says where in memory its texts lie
    table = table.combine_chunks()
    rows = [_sound(records.get_batch(number)) for number in range(records.num_record_batches)]
    if (
        sum(rows) != len(table)
        or any(one != _BATCH for one in rows[:-1])
        or any(one.null_count for one in table.columns)
        or len({*table["name"].to_pylist()}) != len(table)
    ):
        raise ValueError("cells are missing")
    chunk = table["values"].chunk(0)
    _, offsets, data = chunk.buffers()
    ends = np.frombuffer(offsets, dtype=np.int64)[chunk.offset : chunk.offset + len(chunk) + 1]
    values = np.frombuffer(data, dtype=np.uint8)
    sizes = np.array([max((int(where.max()) + 1 for _, where in one.spans.values()), default=0) for one in layouts])
    widths = np.array([kind.itemsize for kind in _KINDS])[table["kind"].to_numpy()]
    if ends[0] != 0 or (np.diff(ends) != sizes[table["layout"].to_numpy()] * widths).any() or ends[-1] > len(values):
        raise ValueError("values are missing")
    return layouts, table, ends, values, records


def _sound(batch: pa.RecordBatch) -> int:
    """How many rows it has. Raises ValueError where it does not hold together."""
    batch.validate(full=True)
    if batch.column(0).null_count:
        raise ValueError("records are missing")
    return cast(int, batch.num_rows)


def _spans(told: list[Any], known: dict[tuple[str, ...], tuple[str, ...]]) -> Iterator[Any]:
    for milestone, column, names, where in told:
        names = tuple(names)
        if column not in COLUMNS or len(names) != len(where) or min(where, default=0) < 0:
            raise ValueError("a layout does not hold together")
        yield (milestone, column), (known.setdefault(names, names), np.array(where, dtype=np.int64))
