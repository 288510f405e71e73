"""The published table beside ours, in the terminal: each cell the paper's number and, below, what was measured here."""

from rich.table import Table
from rich.text import Text

from holdfast.evidence import show
from holdfast.reproduction import CellFound, Reproduction


def table(found: Reproduction) -> Table:
    """A row of the table in two lines: published, and ours in another unit, from 0 to 1 with its interval."""
    title = f"{found.title}: published on another model ({found.published_model}), and here on {found.our_model}"
    drawn = Table(title=Text(title), title_justify="left", show_lines=True)
    drawn.add_column("", overflow="fold")
    for name in found.columns:
        drawn.add_column(Text(name), overflow="fold")
    cells = {(cell.row, cell.column): cell for cell in found.cells}
    for row in dict.fromkeys(cell.row for cell in found.cells):
        shown = [_cell(cells.get((row, name))) for name in found.columns]
        drawn.add_row(Text(f"{row}\npublished\nhere"), *shown)
    return drawn


def _cell(cell: CellFound | None) -> Text:
    if cell is None:
        return Text("")
    ends = cell.published if isinstance(cell.published, tuple) else (cell.published,)
    published = "" if cell.published is None else f"{' to '.join(f'{one:g}' for one in ends)} ({cell.mark})"
    ours = "not tested" if cell.ours is None else show(cell.ours)
    return Text(f"\n{published}\n{ours}")
