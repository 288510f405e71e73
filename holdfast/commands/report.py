"""Write the page of a run again."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import FlagCreatePairsOff, Positional

from holdfast import evallog, policy, shell
from holdfast.problem import Problem
from holdfast.run import Run

SHOWN = 8
"""Examples of each kind that `--show-answers` takes from a cell."""


@dataclass(frozen=True)
class Report:
    """Judge a run again and write its page."""

    run: Positional[Path]
    """Folder of the run."""
    show_answers: Annotated[FlagCreatePairsOff[bool], shell.Unset] = False
    """Show prompts and answers, if the audit kept them."""
    inspect: Annotated[Path | None, shell.Unset] = None
    """Write the run as logs of Inspect into this new folder, one a milestone: prompts, reference answers, scores, and answers
    if the audit kept them."""


def main(words: list[str]) -> int:
    options = shell.parse(Report, "report", words)
    run = Run.open(options.run)
    written = evallog.write(run, options.inspect) if options.inspect else []
    code = shell.told(run, _examples(run) if options.show_answers else None)
    if written:
        shell.say(f"Inspect logs: {len(written)} in {options.inspect}")
    return code


def _examples(run: Run) -> list[dict[str, Any]]:
    """Prompts and answers of restricted prompts at the start and the end of every cell that kept them."""
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
