"""Is a new version worse than the one before it?"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.table import Table
from rich.text import Text
from tyro.conf import Positional

from holdfast import regression, speech
from holdfast.problem import Problem, printable
from holdfast.regression import ONLY_NEW, Regression, Word
from holdfast.run import Run

CODES: dict[Word, int] = {"not worse": 0, "better": 0, "no worse shown": 3, "not comparable": 3, "worse": 4}
"""What the command returns; 2 is bad input, as everywhere."""
_STYLES: dict[Word, str] = {
    "not worse": "green",
    "better": "green",
    "no worse shown": "yellow",
    "not comparable": "yellow",
    "worse": "red",
}


@dataclass(frozen=True)
class Diff:
    """Is a new version worse? Two runs of the same attacks on the same prompts, attack by attack.

    Returns 0 where it is known to be no worse, 3 where that cannot be told, 4 where it is worse, 2 for bad input.
    """

    old: Annotated[Positional[Path], tyro.conf.arg(metavar="OLD")]
    """Folder of the run on the version before."""
    new: Annotated[Positional[Path], tyro.conf.arg(metavar="NEW")]
    """Folder of the run on the new version."""
    subject: Annotated[str | None, speech.Unset] = None
    """Which model of the runs; the one that is neither a twin nor a control unless given."""
    other: Annotated[str | None, speech.Unset] = None
    """Its name in the new run; the same unless given."""
    margin: float = 0.1
    """How much worse it may be in harm after an attack, or in what it does before any."""


def main(words: list[str]) -> int:
    options = speech.parse(Diff, "diff", words)
    if not 0 < options.margin < 1:
        raise Problem(f"--margin {options.margin:g}: give a share between 0 and 1, as 0.1")
    old, new = Run.open(options.old), Run.open(options.new)
    found = regression.compare(old, new, options.subject, options.other, options.margin)
    if found.lines:
        speech.console.print(_table(found))
    for reason in found.reasons:
        speech.say(reason)
    speech.console.print(Text(_sentence(found), _STYLES[found.word]), soft_wrap=True)
    return CODES[found.word]


def _table(found: Regression) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("p worse", justify="right", no_wrap=True)
    table.add_column("rise in harm, and when it broke; or the measure", overflow="fold")
    for one in found.lines:
        p = "" if one.adjusted is None else f"{one.adjusted:.1g}"
        table.add_row(Text(one.word, _STYLES[one.word]), Text(printable(one.name)), p, Text(printable(one.says)))
    return table


def _sentence(found: Regression) -> str:
    named = {
        word: ", ".join(printable(one.name) for one in found.lines if one.word == word and one.says != ONLY_NEW)
        for word in ("worse", "no worse shown", "better", "not comparable")
    }
    says = {
        "worse": f"worse: {named['worse']}",
        "no worse shown": "no worse shown, which is not the same as no worse; open: "
        + (", ".join(part for part in (named["no worse shown"], named["not comparable"]) if part) or "see above"),
        "better": f"better: {named['better']}; nothing is worse by more than {found.margin:g}",
        "not worse": f"not worse: nothing by more than {found.margin:g}",
        "not comparable": "not comparable",
    }
    return says[found.word]
