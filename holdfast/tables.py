"""Per-prompt scores of cells, kept small: a run of a hundred thousand cells has ten million rows, most of them laid out alike.

Knows no files and no torch.
"""

from collections.abc import ItemsView, Iterable, Iterator, KeysView, Mapping, Sequence, ValuesView
from functools import cached_property
from typing import Any, NamedTuple, overload

import numpy as np
import pyarrow as pa

COLUMNS = ("harm", "refusal", "coherence", "over_refusal", "utility", "learned", "fresh", "second")
"""What is scored."""
KEYS = ("milestone", "id")
_SCORE = pa.float64()
Place = tuple[int, str]
"""Milestone and column."""


class Scores(Mapping[str, float]):
    """Scores by prompt. Those of cells with the same prompts share one tuple of names, so that they stack as arrays."""

    def __init__(self, names: tuple[str, ...], values: np.ndarray):
        """`values` in the order of `names`, of which none stands there twice."""
        self.names, self.numbers = names, values

    @cached_property
    def _known(self) -> dict[str, float]:
        return dict(zip(self.names, self.numbers.astype(float).tolist(), strict=True))

    def __getitem__(self, name: str) -> float:
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def keys(self) -> KeysView[str]:
        return self._known.keys()

    def values(self) -> ValuesView[float]:
        return self._known.values()

    def items(self) -> ItemsView[str, float]:
        return self._known.items()


NONE = Scores((), np.empty(0))


class Stack(Sequence[Scores]):
    """Scores of several cells with the same prompts, as one array."""

    def __init__(self, names: tuple[str, ...], numbers: np.ndarray):
        """`numbers`, cells × prompts, in the order of `names`."""
        self.names, self.numbers = names, numbers

    @overload
    def __getitem__(self, place: int) -> Scores: ...
    @overload
    def __getitem__(self, place: slice) -> "Stack": ...
    def __getitem__(self, place: int | slice) -> "Scores | Stack":
        return (Stack if isinstance(place, slice) else Scores)(self.names, self.numbers[place])

    def __len__(self) -> int:
        return len(self.numbers)


class Seeds(Mapping[int, Scores]):
    """Scores by seed."""

    def __init__(self, seeds: tuple[int, ...], scores: Sequence[Scores]):
        """`scores` in the order of `seeds`, of which none stands there twice."""
        self.seeds, self.scores = seeds, scores
        self._places = dict(zip(seeds, range(len(seeds)), strict=True))

    def __getitem__(self, seed: int) -> Scores:
        return self.scores[self._places[seed]]

    def __iter__(self) -> Iterator[int]:
        return iter(self.seeds)

    def __len__(self) -> int:
        return len(self.seeds)


class Layout(NamedTuple):
    """Which prompts, by name, were scored at which milestone in which column, and where their values stand."""

    spans: dict[Place, tuple[tuple[str, ...], np.ndarray]]


class Table(NamedTuple):
    """The finite scores of one cell."""

    layout: Layout
    values: np.ndarray

    def scores(self, milestone: int, column: str) -> Scores:
        """By prompt; of one that stands there twice the last."""
        span = self.layout.spans.get((milestone, column))
        return NONE if span is None else Scores(span[0], self.values[span[1]])


EMPTY = Table(Layout({}), np.empty(0))


class Looked:
    """All scores at some milestones of some cells."""

    def __init__(self, looks: Sequence[tuple[Table, int]]):
        self._looks = looks
        layout, milestone = (looks[0][0].layout, looks[0][1]) if looks else (None, 0)
        alike = all(table.layout is layout and at == milestone for table, at in looks)
        self._spans = layout.spans if layout and alike else None

    @cached_property
    def _whole(self) -> np.ndarray:
        return np.concatenate([table.values for table, _ in self._looks]).reshape(len(self._looks), -1)

    def scores(self, column: str) -> Sequence[Scores]:
        """By prompt, in the order of the looks: a `Stack` where the prompts of all are the same."""
        if not self._looks:
            return []
        if self._spans is not None:
            span = self._spans.get((self._looks[0][1], column))
            return Stack(span[0], self._whole[:, span[1]]) if span else Stack((), np.empty((len(self._looks), 0)))
        found = [table.scores(at, column) for table, at in self._looks]
        names = found[0].names
        alike = names and all(one.names is names for one in found)
        return Stack(names, np.stack([one.numbers for one in found])) if alike else found


class Tables:
    """Makes tables of cells, whose layouts are kept once."""

    def __init__(self) -> None:
        self._layouts: dict[tuple[tuple[str, ...], bytes], Layout] = {}
        self._read: dict[tuple[Any, ...], Layout] = {}
        self._names: dict[tuple[str, ...], tuple[str, ...]] = {}
        self._schema: pa.Schema | None = None
        self._scored: tuple[str, ...] = ()

    def of_rows(self, rows: Iterable[Mapping[str, Any]]) -> Table:
        """Of rows as dicts. Raises ValueError where they are no scores."""
        rows = list(rows)
        columns = [[row.get(name) for row in rows] for name in COLUMNS]
        scores = np.array([[np.nan if one is None else one for one in column] for column in columns], dtype=float)
        milestones, ids = ([row[name] for row in rows] for name in KEYS)
        return self._made(milestones, ids, COLUMNS, scores.reshape(len(COLUMNS), -1))

    def of_table(self, table: pa.Table) -> Table:
        """Of a Parquet file's columns. Raises ValueError where they are no scores."""
        schema = table.schema
        if self._schema is None or schema != self._schema:  # of one run's files nearly all are alike
            self._schema, self._scored = schema, _scored(schema)
        milestones, ids = (table.column(name) for name in KEYS)
        for name, column in zip(KEYS, (milestones, ids), strict=True):
            if column.null_count:
                raise ValueError(f"its column {name!r} has holes")
        scores = np.empty((len(self._scored), len(table)))
        for place, name in enumerate(self._scored):
            column = table.column(name)
            scores[place] = (column if column.type == _SCORE else column.cast(_SCORE, safe=False)).to_numpy()
        if (scores < 0).any() or (np.isfinite(scores) & (scores > 1)).any():
            raise ValueError("it holds a score that is not from 0 to 1")
        return self._made(milestones.to_numpy(), ids, self._scored, scores)

    def shared(self, tables: Sequence[Table]) -> list[Table]:
        """Tables that were read by another process, with layouts of which there is one here."""
        layouts = {id(one.layout): one.layout for one in tables}
        ours = {name: self._one(layout) for name, layout in layouts.items()}
        return [Table(ours[id(one.layout)], one.values) for one in tables]

    def _one(self, layout: Layout) -> Layout:
        spans = {place: (self._names.setdefault(names, names), where) for place, (names, where) in layout.spans.items()}
        key = tuple((place, names, where.tobytes()) for place, (names, where) in spans.items())
        return self._read.setdefault(key, Layout(spans))

    def _made(self, milestones: Any, ids: Any, columns: tuple[str, ...], scores: np.ndarray) -> Table:
        there = np.isfinite(scores)
        milestones = np.asarray(milestones, dtype=np.int64)
        known = columns, b"".join((milestones.tobytes(), _bytes(ids), np.packbits(there).tobytes()))
        if known not in self._layouts:
            ids = ids if isinstance(ids, list) else ids.to_pylist()
            self._layouts[known] = self._laid_out(milestones, ids, columns, there)
        return Table(self._layouts[known], _small(scores[there]))

    def _laid_out(
        self, milestones: np.ndarray, ids: Sequence[str], columns: Sequence[str], there: np.ndarray
    ) -> Layout:
        spans: dict[Place, tuple[tuple[str, ...], np.ndarray]] = {}
        before = 0
        for column, seen in zip(columns, there, strict=True):
            rows = np.flatnonzero(seen)
            for milestone in np.unique(milestones[rows]).tolist():
                inside = np.flatnonzero(milestones[rows] == milestone)
                last = {ids[row]: before + place for row, place in zip(rows[inside], inside, strict=True)}
                names = tuple(sorted(last))
                names = self._names.setdefault(names, names)
                spans[milestone, column] = names, np.array([last[name] for name in names])
            before += len(rows)
        return Layout(spans)


def _scored(schema: pa.Schema) -> tuple[str, ...]:
    """The columns that hold scores. Raises ValueError where one, or a key, is not what it must be."""
    kinds = dict(zip(schema.names, schema.types, strict=True))
    if len(kinds) != len(schema.names):
        raise ValueError("a column stands there twice")
    for name, fits in zip(KEYS, (pa.types.is_integer, _is_text), strict=True):
        if name not in kinds or not fits(kinds[name]):
            raise ValueError(f"its column {name!r} is missing, or of another type")
    found = tuple(name for name in COLUMNS if name in kinds and not pa.types.is_null(kinds[name]))
    for name in found:
        kind = kinds[name]
        if not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind)):
            raise ValueError(f"its column {name!r} holds no numbers")
    return found


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


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
