"""Every figure of a run as files: the table behind it as CSV and Parquet, and pictures where a browser can draw them."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from holdfast import disk
from holdfast.dossier import Dossier
from holdfast.problem import Problem, printable
from holdfast.report import tables
from holdfast.report.drawings import drawings
from holdfast.report.figures import Panel
from holdfast.report.hover import plain
from holdfast.report.sources import Sources
from holdfast.report.words import Index

SIZE = (900, 520)
"""Of a picture, unless its figure says how high it must be."""
_SECONDS = 60
"""For one picture at most."""


def write(dossier: Dossier, folder: Path, sources: Sources) -> list[str]:
    """Write all figures of a run into the new folder `folder`.

    Returns:
        What was written, and why there are no pictures where there are none, a line each.

    Raises:
        Problem: the folder is not empty or cannot be written.
    """
    panels = drawings(Index(dossier), sources.search).panels
    names = _names([panel.name for panel in panels])
    behind = list({id(panel.table): panel.table for panel in panels}.values())
    with disk.whole(folder) as aside:
        for name, table in zip(_names([one.name for one in behind]), behind, strict=True):
            disk.write(aside / f"{name}.csv", tables.as_csv(table))
            disk.write(aside / f"{name}.parquet", tables.as_parquet(table))
        try:
            _draw(panels, names, aside)
            pictures = f"{len(panels)} figures as PNG and SVG"
        except Problem as problem:
            pictures = str(problem)
    return [f"figures: {len(behind)} tables as CSV and Parquet in {folder}", f"figures: {pictures}"]


def _names(wanted: Sequence[str]) -> list[str]:
    """A file name each; where two would be the same, with a number."""
    made: list[str] = []
    for name in map(tables.file_name, wanted):
        tries = (name, *(f"{name}-{number}" for number in range(2, len(wanted) + 2)))
        made.append(next(one for one in tries if one not in made))
    return made


def _draw(panels: Sequence[Panel], names: Sequence[str], folder: Path) -> None:
    """Raises `Problem` where nothing here can draw."""
    try:
        import kaleido
        from kaleido.errors import ChromeNotFoundError
    except ImportError:
        raise Problem("no PNG or SVG, for they need kaleido: pip install 'holdfast[figures]'") from None
    wanted = [
        {"fig": _on_paper(panel), "path": str(folder / f"{name}.{form}"), "opts": _opts(panel, form)}
        for panel, name in zip(panels, names, strict=True)
        for form in ("png", "svg")
    ]
    try:
        # Nothing is fetched: plotly's own script is drawn with, and its figures hold no formula.
        failed = kaleido.write_fig_from_object_sync(wanted, kopts={"mathjax": False, "timeout": _SECONDS})
    except ChromeNotFoundError:
        raise Problem(
            "no PNG or SVG, for they need Chrome or Chromium: install it, or name it in the variable BROWSER_PATH"
        ) from None
    except Exception as error:  # a browser fails in as many ways as there are browsers
        raise Problem(f"no PNG or SVG, for the browser failed: {printable(error)}") from None
    if failed:
        raise Problem(f"{len(failed)} pictures could not be drawn, the first because: {printable(failed[0])}")


def _on_paper(panel: Panel) -> dict[str, Any]:
    """The figure on white, without each seed's line, with room for the names at the lines' ends."""
    made = copy.deepcopy(panel.figure)
    labels = [
        one.text for one in made.layout.annotations if one.name not in (None, "threshold") and one.xref == "paper"
    ]
    if labels:
        made.update_layout(margin_r=16 + 8 * max(map(len, labels)))
    title = {"text": plain(f"{panel.title} · {panel.name}", 160), "font": {"size": 13}, "x": 0.01, "xanchor": "left"}
    made.update_layout(paper_bgcolor="#ffffff", plot_bgcolor="#ffffff", title=title, margin_t=44)
    return made.to_plotly_json()


def _opts(panel: Panel, form: str) -> dict[str, Any]:
    width, height = SIZE
    return {"format": form, "width": width, "height": panel.figure.layout.height or height, "scale": 2}
