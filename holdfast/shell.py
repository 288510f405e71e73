"""What commands that work on models share, beside how they speak (`speech`): the method named, the run judged and told."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from holdfast import processes, speech, verdict
from holdfast.dossier import Dossier
from holdfast.problem import Problem, wrapped
from holdfast.report import page, terminal
from holdfast.report.sources import sources
from holdfast.run import MANY, Run
from holdfast.seal import PAGE

if TYPE_CHECKING:
    from holdfast.method import Room

SHOWN = 8
"""Examples of each kind that `--show-answers` takes from a cell."""


def some(number: int | None) -> int | None:
    if number is not None and number < 1:
        raise Problem(f"--processes {number}: nothing would ever run; give 1 or more")
    return number


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
    return speech.parse(tuple[both], f"{command} {words[0]}", words[1:], (found.__doc__ or "").strip())


def told(run: Run, examples: list[dict[str, Any]] | None = None) -> int:
    """Judge, write verdict and page, print the table. Returns 1 where every cell failed, else 0."""
    with processes.unswept():
        dossier: Dossier = verdict.judge(run, remember=True)
        shown, many = sources(run), len(dossier.cells) >= MANY
        with processes.meanwhile(lambda: page.write(dossier, run.folder / PAGE, examples, shown), pays=many) as paged:
            verdict.keep(run, dossier)
            paged()
    speech.console.print(terminal.table(dossier, speech.console.width))
    places = "", f"page: {run.folder / PAGE}", f"verdict: {run.folder / 'verdict.json'}"
    for line in (*(f"not run: {one}" for one in dossier.manifest.not_run), *places, dossier.manifest.kept):
        speech.say(line)
    failed = [cell for cell in dossier.cells if cell.status == "failed"]
    if failed and len(failed) == len(dossier.cells):
        speech.say(f"every cell failed: nothing was measured; {failed[0].name}: {failed[0].reason}")
        return 1
    return 0


def examples_of(run: Run) -> list[dict[str, Any]]:
    """Prompts and answers of restricted prompts at the start and the end of every cell that kept them."""
    from holdfast import policy  # it knows the corpus, and so the models: seconds that few reports need

    corpus = run.manifest().corpus.get("file")
    if not isinstance(corpus, str):
        raise Problem(f"{run.folder}/run.json, corpus: names no file; leave out --show-answers")
    texts = {row.id: row.text for row in policy.prompts(Path(corpus)).rows}
    found = []
    for cell in run.cells():
        rows = [row for row in run.rows(cell.name) if row.get("kind") == "restricted" and row.get("answer") is not None]
        for index in sorted({0, len(cell.milestones) - 1}):
            for row in [row for row in rows if row["milestone"] == index][:SHOWN]:
                place = {"subject": cell.subject, "attack": cell.attack, "seed": cell.seed, "milestone": index}
                found.append(
                    place | {"kind": row["kind"], "text": texts.get(row["id"], row["id"]), "answer": row["answer"]}
                )
    if not found:
        raise Problem(f"{run.folder}: the audit kept no answers; audit again with --keep-answers to another --out")
    return found


def shows(run: Run, dossier: Dossier) -> bool:
    """Whether the page in the run's folder is what `told` writes of it here, with examples or without."""
    there, beside = (run.folder / PAGE).read_bytes(), sources(run)
    if there == page.render(dossier, None, beside).encode("utf-8", "replace"):
        return True
    try:
        return there == page.render(dossier, examples_of(run), beside).encode("utf-8", "replace")
    except Problem:  # no answers were kept, or the corpus is gone
        return False
