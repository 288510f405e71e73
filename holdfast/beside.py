"""The published table beside ours, in the terminal: a line a cell, the paper's number in its unit and what was measured here."""

from rich.table import Table
from rich.text import Text

from holdfast.evidence import show
from holdfast.reproduction import CellFound, Reproduction


def table(found: Reproduction) -> Table:
    """A section for each column of the paper's table, a line for each of its rows. Ours goes from 0 to 1, with its interval."""
    drawn = Table(title=Text(f"{found.title} (arXiv {found.arxiv}), {found.scale} scale"), title_justify="left")
    for head in ("", "", f"published, on another model: {found.published_model}", f"here: {found.our_model}"):
        drawn.add_column(Text(head), overflow="fold")
    for name, says in found.columns.items():
        for number, cell in enumerate(cell for cell in found.cells if cell.column == name):
            drawn.add_row(Text(f"{name}: {says}" if number == 0 else ""), Text(cell.row), *_cell(cell))
        drawn.add_section()
    return drawn


def _cell(cell: CellFound) -> tuple[Text, Text]:
    ends = cell.published if isinstance(cell.published, tuple) else (cell.published,)
    published = "" if cell.published is None else f"{' to '.join(f'{one:g}' for one in ends)} ({cell.mark})"
    seeds = f", {cell.seeds} seed{'s' * (cell.seeds > 1)}"
    return Text(published), Text("not tested" if cell.ours is None else f"{show(cell.ours)}{seeds}")
