"""How a command that works on models speaks with whoever calls it, beside `speech`, whose words are here too."""

from typing import TYPE_CHECKING, Annotated, Any

import tyro

from holdfast import verdict
from holdfast.dossier import Dossier
from holdfast.problem import Problem, wrapped
from holdfast.quiet import quiet
from holdfast.report import page, terminal
from holdfast.report.sources import sources
from holdfast.run import Run
from holdfast.speech import Unset, console, parse, say

if TYPE_CHECKING:
    from holdfast.method import Room


def some(processes: int | None) -> int | None:
    if processes is not None and processes < 1:
        raise Problem(f"--processes {processes}: nothing would ever run; give 1 or more")
    return processes


def method(room: "Room", command: str, places: type[Any], words: list[str]) -> tuple[Any, Any]:
    """The places and the method that `holdfast COMMAND METHOD --flags` names."""
    from holdfast import method as methods  # and so torch, which a report does without

    if not words or words[0] in ("-h", "--help"):
        print(f"usage: holdfast {command} METHOD ... (holdfast {command} METHOD --help tells more)\n\n{room}:")
        known = {
            name: (methods.find(room, name).__doc__ or "").strip().partition("\n")[0] for name in methods.names(room)
        }
        wide = max(map(len, known))
        for name, says in known.items():
            print(wrapped(f"  {name:{wide}}  {says}", " " * (wide + 4)))
        raise SystemExit(0 if words else 2)
    found = methods.find(room, words[0])
    both = Annotated[places, tyro.conf.arg(name="")], Annotated[found, tyro.conf.arg(name="")]
    return parse(tuple[both], f"{command} {words[0]}", words[1:], (found.__doc__ or "").strip())


def told(run: Run, examples: list[dict[str, Any]] | None = None) -> int:
    """Judge, write verdict and page, print the table. Returns 1 where every cell failed, else 0."""
    dossier: Dossier = verdict.write(run)
    page.write(dossier, run.folder / "report.html", examples, sources(run))
    console.print(terminal.table(dossier, console.width))
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
