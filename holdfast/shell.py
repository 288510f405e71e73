"""How a command that works on models speaks with whoever calls it, beside `speech`, whose words are here too."""

from typing import TYPE_CHECKING, Annotated, Any

import tyro

from holdfast import processes, verdict
from holdfast.dossier import Dossier
from holdfast.problem import Problem
from holdfast.quiet import quiet
from holdfast.report import page, terminal
from holdfast.report.sources import sources
from holdfast.run import Run
from holdfast.speech import Unset, console, parse, say

if TYPE_CHECKING:
    from holdfast.method import Room

_MANY = 4000
"""Cells from which on the page is made while the verdict is written."""


def some(number: int | None) -> int | None:
    if number is not None and number < 1:
        raise Problem(f"--processes {number}: nothing would ever run; give 1 or more")
    return number


def method(room: "Room", command: str, places: type[Any], words: list[str]) -> tuple[Any, Any]:
    """The places and the method that `holdfast COMMAND METHOD --flags` names."""
    from holdfast import method as methods  # and so torch, which a report does without

    known = ", ".join(methods.names(room))
    if not words or words[0] in ("-h", "--help"):
        print(f"usage: holdfast {command} METHOD ... (holdfast {command} METHOD --help tells more)\n\n{room}: {known}")
        raise SystemExit(0 if words else 2)
    found = methods.find(room, words[0])
    both = Annotated[places, tyro.conf.arg(name="")], Annotated[found, tyro.conf.arg(name="")]
    return parse(tuple[both], f"{command} {words[0]}", words[1:], (found.__doc__ or "").strip())


def told(run: Run, examples: list[dict[str, Any]] | None = None) -> int:
    """Judge, write verdict and page, print the table. Returns 1 where every cell failed, else 0."""
    dossier: Dossier = verdict.judge(run, again=True)
    shown, many = sources(run), len(dossier.cells) >= _MANY
    paged = processes.beside(lambda: page.write(dossier, run.folder / "report.html", examples, shown), pays=many)
    verdict.keep(run, dossier)
    paged()
    console.print(terminal.table(dossier))
    places = "", f"page: {run.folder / 'report.html'}", f"verdict: {run.folder / 'verdict.json'}"
    for line in (*(f"not run: {one}" for one in dossier.manifest.not_run), *places, dossier.manifest.kept):
        say(line)
    failed = [cell for cell in dossier.cells if cell.status == "failed"]
    if failed and len(failed) == len(dossier.cells):
        say(f"every cell failed: nothing was measured; {failed[0].name}: {failed[0].reason}")
        return 1
    return 0


__all__ = ["Unset", "console", "method", "parse", "say", "some", "told"]
quiet()
