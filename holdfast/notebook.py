"""What a notebook shows: texts as HTML that can only be read, and one line that tells how far a piece of work is."""

import html
import io
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from holdfast.problem import printable


def here() -> bool:
    """Whether this process is a notebook's."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return getattr(shell, "kernel", None) is not None


def as_html(text: object) -> str:
    """A text as HTML shows it literally, without control or direction-changing characters."""
    return html.escape(printable(text))


def paragraph(head: object, text: object, notes: Iterable[object] = ()) -> str:
    """A word, what it means, and remarks on it, as HTML."""
    listed = "".join(f"<li>{as_html(note)}</li>" for note in notes)
    return f"<p><b>{as_html(head)}</b> {as_html(text)}</p>" + (f"<ul>{listed}</ul>" if listed else "")


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Rows of cells as an HTML table, cells aligned to the left."""
    left = ' style="text-align:left"'
    head = "".join(f"<th{left}>{as_html(one)}</th>" for one in columns)
    body = "".join("<tr>" + "".join(f"<td{left}>{as_html(one)}</td>" for one in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


class Status(io.StringIO):
    """A file that shows the last line written to it, in place of the one before."""

    def __init__(self) -> None:
        super().__init__()
        self._begun = ""
        self._shown: Any = None

    def write(self, text: str) -> int:
        *lines, self._begun = (self._begun + text).split("\n")
        if told := [line for line in lines if line.strip()]:
            self._show(told[-1])
        return len(text)

    def _show(self, line: str) -> None:
        from IPython.display import HTML, display

        content = HTML(f"<pre>{as_html(line)}</pre>")
        if self._shown is None:
            self._shown = display(content, display_id=True)
        else:
            self._shown.update(content)
