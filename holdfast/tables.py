"""Per-prompt scores of cells, kept small: a run of a hundred thousand cells has ten million rows, most of them laid out alike.

Knows no files and no torch.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

COLUMNS = ("harm", "refusal", "coherence", "over_refusal", "utility", "learned", "fresh", "second")
"""What is scored."""
KEYS = ("milestone", "id")
Place = tuple[int, str]
"""Milestone and column."""


class Layout(NamedTuple):
    """Which prompts were scored at which milestone in which column, and where their values stand."""

    spans: dict[Place, tuple[tuple[str, ...], np.ndarray]]


class Table(NamedTuple):
    """The finite scores of one cell."""

    layout: Layout
    values: np.ndarray

    def scores(self, milestone: int, column: str) -> dict[str, float]:
        """By prompt; of one that stands there twice the last."""
        span = self.layout.spans.get((milestone, column))
        return {} if span is None else dict(zip(span[0], self.values[span[1]].astype(float).tolist(), strict=True))


class Tables:
    """Makes tables of cells, whose layouts are kept once."""

    def __init__(self) -> None:
        self._layouts: dict[bytes, Layout] = {}
        self._texts: dict[str, str] = {}

    def of_rows(self, rows: Iterable[Mapping[str, Any]]) -> Table:
        """Of rows as dicts. Raises ValueError where they are no scores."""
        rows = list(rows)
        columns = [[row.get(name) for row in rows] for name in COLUMNS]
        scores = np.array([[np.nan if one is None else one for one in column] for column in columns], dtype=float)
        return self._made(
            [row["milestone"] for row in rows], [row["id"] for row in rows], scores.reshape(len(COLUMNS), -1)
        )

    def of_table(self, table: pa.Table) -> Table:
        """Of a Parquet file's columns. Raises ValueError where they are no scores."""
        for name, fits in (("milestone", pa.types.is_integer), ("id", _is_text)):
            if name not in table.column_names or not fits(table.schema.field(name).type):
                raise ValueError(f"its column {name!r} is missing, or of another type")
            if table.column(name).null_count:
                raise ValueError(f"its column {name!r} has holes")
        scores, known = np.full((len(COLUMNS), len(table)), np.nan), {*table.column_names}
        for place, name in enumerate(COLUMNS):
            if name in known:
                scores[place] = _numbers(table.column(name), name)
        if np.nanmin(scores, initial=0) < 0 or np.nanmax(scores, initial=0, where=np.isfinite(scores)) > 1:
            raise ValueError("it holds a score that is not from 0 to 1")
        return self._made(table.column("milestone").to_numpy(), table.column("id"), scores)

    def _made(self, milestones: Any, ids: Any, scores: np.ndarray) -> Table:
        there = np.isfinite(scores)
        milestones = np.asarray(milestones, dtype=np.int64)
        known = b"".join((milestones.tobytes(), _bytes(ids), np.packbits(there).tobytes()))
        if known not in self._layouts:
            self._layouts[known] = self._laid_out(milestones, ids if isinstance(ids, list) else ids.to_pylist(), there)
        return Table(self._layouts[known], _small(scores[there]))

    def _laid_out(self, milestones: np.ndarray, ids: Sequence[str], there: np.ndarray) -> Layout:
        spans: dict[Place, tuple[tuple[str, ...], np.ndarray]] = {}
        names, before = [self._texts.setdefault(one, one) for one in ids], 0
        for column, seen in zip(COLUMNS, there, strict=True):
            rows = np.flatnonzero(seen)
            for milestone in np.unique(milestones[rows]).tolist():
                inside = np.flatnonzero(milestones[rows] == milestone)
                spans[milestone, column] = tuple(names[row] for row in rows[inside]), before + inside
            before += len(rows)
        return Layout(spans)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _numbers(column: pa.ChunkedArray, name: str) -> np.ndarray:
    kind = column.type
    if pa.types.is_null(kind):
        return np.full(len(column), np.nan)
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
        raise ValueError(f"its column {name!r} holds no numbers")
    return (column if kind == pa.float64() else column.cast(pa.float64(), safe=False)).to_numpy()


def _bytes(ids: Any) -> bytes:
    """Something that two lists of ids have in common only where they are the same."""
    if isinstance(ids, list):
        return "\0".join(map(str, ids)).encode("utf-8", "surrogatepass")
    return b"".join(bytes(part) for chunk in ids.chunks for part in pa.concat_arrays([chunk]).buffers()[1:] if part)


def _small(values: np.ndarray) -> np.ndarray:
    """The same numbers in as few bytes as hold them."""
    for kind in (np.uint8, np.float32):
        with np.errstate(invalid="ignore", over="ignore"):
            small = values.astype(kind)
        if np.array_equal(small, values):
            return small
    return values
