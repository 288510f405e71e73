"""Curves drawn small, in braille: each character is two dots wide and four high. Knows nothing of what they mean."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

from rich.text import Text

_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
"""Of a braille character: by column, from above."""


class Line(NamedTuple):
    """One curve: points from left to right, y from 0 to 1."""

    points: Sequence[tuple[float, float]]
    style: str
    dotted: bool = False
    """Told from the others without color."""


def drawn(lines: Sequence[Line], width: int, height: int, level: float, unit: str, logarithmic: bool) -> list[Text]:
    """The curves in so many characters, with axes; later curves lie over earlier ones.

    Args:
        level: where a thin line is drawn across, and named.
        unit: of the x axis.
        logarithmic: whether the x axis grows by factors (from 0: as log(1 + x)).
    """
    margin = 6
    wide = max(8, width - margin)
    end = max((x for line in lines for x, _ in line.points), default=0.0) or 1.0
    scale = math.log1p if logarithmic else float
    dots: dict[tuple[int, int], tuple[int, str]] = {}
    for line in lines:
        placed = [
            (scale(x) / scale(end) * (2 * wide - 1), (1 - min(max(y, 0.0), 1.0)) * (4 * height - 1))
            for x, y in line.points
        ]
        for turn, (x, y) in enumerate(_along(placed)):
            if not line.dotted or turn % 4 < 1:
                column, row = round(x), round(y)
                mask, _ = dots.get((row // 4, column // 2), (0, ""))
                dots[row // 4, column // 2] = mask | _DOTS[column % 2][row % 4], line.style
    across = round((1 - level) * (4 * height - 1)) // 4
    labels = {across: f"{level:.2g}", 0: "1", height - 1: "0"}
    rows = []
    for row in range(height):
        text = Text(f"{labels.get(row, ''):>{margin - 2}} {'┤' if row in labels else '│'}", no_wrap=True)
        for column in range(wide):
            mask, style = dots.get((row, column), (0, "dim"))
            text.append(chr(0x2800 + mask) if mask else "┄" if row == across else " ", style)
        rows.append(text)
    rows.append(Text(f"{'└':>{margin}}{'─' * wide}", no_wrap=True))
    ends = f"{end:g} {unit}"[:wide]
    rows.append(Text(f"{'':{margin}}0{ends:>{wide - 1}}", "dim", no_wrap=True))
    return rows


def _along(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points, and what lies on straight lines between them, a dot apart."""
    found = [*points[:1]]
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        steps = max(1, round(max(abs(x1 - x0), abs(y1 - y0))))
        found += [(x0 + (x1 - x0) * n / steps, y0 + (y1 - y0) * n / steps) for n in range(1, steps + 1)]
    return found
