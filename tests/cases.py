"""Which cases of a large table the quick suite runs: every row on one of the columns, and the whole table in `make hard`."""

from collections.abc import Iterable, Sequence
from typing import Any

import pytest


def in_turn(rows: Iterable[Any], columns: Sequence[str], *, first: int = 0, whole: Sequence[Any] = ()) -> list[Any]:
    """Every row with every column, all but one of each row marked `hard`; the next row keeps the next column.

    For tables whose rows and columns are each told apart by code that does not depend on the other.

    Args:
        rows: values, or what `pytest.param` makes.
        first: the column that the first row keeps.
        whole: rows that keep all columns, one of each kind that code does tell apart.
    """
    made = []
    for number, row in enumerate(rows):
        one = row if isinstance(row, type(pytest.param())) else pytest.param(row, id=str(row))
        for turn, column in enumerate(columns):
            kept = turn == (number + first) % len(columns) or (*one.values,) in [(some,) for some in whole]
            marks = [*one.marks, *([] if kept else [pytest.mark.hard])]
            made.append(pytest.param(*one.values, column, id=f"{one.id}-{column}", marks=marks))
    return made
