"""The table behind each figure, one observation a row, as CSV and Parquet. Reads records only; writes no HTML."""

import csv
import io
import re
from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from holdfast.record import AttackFacts
from holdfast.report import words
from holdfast.report.words import Index

Value = str | float | int | None
_SCORES = ("harm", "utility", "coherence", "refusal", "over_refusal")
_SPENT = ("examples", "tokens", "flops")


class Table(NamedTuple):
    """Named columns and their rows."""

    name: str
    """Of its files."""
    columns: tuple[str, ...]
    rows: list[tuple[Value, ...]]


def table(name: str, columns: Sequence[str], rows: Sequence[Sequence[Value]]) -> Table:
    """A table whose texts are fit for any reader: no control characters, and none that a spreadsheet would calculate."""
    return Table(name, tuple(columns), [tuple(_told(one) for one in row) for row in rows])


def of_attack(index: Index, attack: AttackFacts) -> Table:
    """Every look at every subject under one attack: scores with interval and n, seeds, and what had been spent."""
    scores = [f"{name}{part}" for name in _SCORES for part in ("", "_low", "_high", "_n")]
    columns = ["attack", "subject", attack.axis, "status", "seeds", "seeds_held", "seeds_broken", *scores]
    plane = any(point.plane for _, _, curve in index.curves(attack) for point in curve.points)
    rows = []
    for _, facts, curve in index.curves(attack):
        looks = index.looks(facts, attack)
        for point in curve.points:
            told = [attack.name, facts.name, point.position, point.status, point.seeds, point.held, point.broken]
            for name in _SCORES:
                score = getattr(point, name)
                told += [score.value, score.low, score.high, score.n] if score else [None] * 4
            costs = [look.cost for _, _, look in looks.get(point.position, [])]
            told += [fmean(getattr(cost, name) for cost in costs) if costs else None for name in _SPENT]
            rows.append([*told, point.seconds, *((point.plane or (0.0, 0.0)) if plane else ())])
    return table(attack.name, [*columns, *_SPENT, "seconds", *(("x", "y") if plane else ())], rows)


def file_name(name: str) -> str:
    """What a figure's files may be called anywhere."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-")[:80] or "figure"


def as_csv(made: Table) -> str:
    """With a header line; empty where there is no value."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(made.columns)
    writer.writerows(made.rows)
    return file.getvalue()


def as_parquet(made: Table) -> bytes:
    columns = {name: [row[place] for row in made.rows] for place, name in enumerate(made.columns)}
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue().to_pybytes()


def _told(value: Value) -> Value:
    if isinstance(value, str):
        text = words.clean(value, 300).replace("\n", " ")
        return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t") else text
    return round(value, 6) if isinstance(value, float) and abs(value) < 1e6 else value
