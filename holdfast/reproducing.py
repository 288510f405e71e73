"""A published result run again at either scale: what it needs is checked, its corpus dealt, the rest run, or gone on with.

The folder holds `audit/` (an ordinary run, or a relearning), `corpus-....jsonl` where one was dealt, and `reproduction.json`.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console

from holdfast import access, auditing, disk, gathering, reckoning, relearning, reproduction
from holdfast.corpus import Corpus
from holdfast.display import teller
from holdfast.evidence import Evidence
from holdfast.footprint import Card
from holdfast.paper import Paper, Scale, Setup
from holdfast.pictured import Pictured
from holdfast.problem import Problem
from holdfast.reproduction import Reproduction, Table
from holdfast.run import Run

Say = Callable[[str], None]
RESULT = "reproduction.json"


def planned(paper: Paper, scale: Scale, card: Card) -> Iterator[str]:
    """What will be run, what it takes, where it departs from the paper and what is left out. Fetches a config at most."""
    setup = paper.setup(scale)
    yield f"{paper.title} (arXiv {paper.arxiv}), {scale} scale: {setup.model}"
    yield f"published on: {paper.published.model}"
    yield from (f"differs from the paper: {one}" for one in setup.differs)
    yield from (f"not run: {what}, because {why}" for what, why in setup.lacks.items())
    yield from (f"claim: {one.says}" for one in paper.claims)
    if scale == "paper":
        yield from reckoning.told(setup, card)


def reachable(setup: Setup) -> Iterator[str]:
    """Line by line, how each model and file can be had.

    Raises:
        Problem: at the first that cannot, with the remedy.
    """
    for name, model in setup.used.items():
        if model.place is None:
            yield f"{model.hub}: {access.check(model.hub, 'model', f'--set models.{name}=FOLDER')}"
    for name, source in setup.data.items():
        if source.place is None and source.hub is not None:
            yield f"{source.hub}: {access.check(source.hub, 'dataset', f'--set data.{name}=FOLDER')}"
        else:
            gathering.read(gathering.located(name, source))
    if setup.pictures == "":
        raise Problem(
            "the benchmarks about pictures are to be fetched by hand, as docs/reproduced.md says; give their folder by "
            "--set pictures=FOLDER"
        )


def run(name: str, paper: Paper, scale: Scale, folder: Path, console: Console, processes: int | None) -> Reproduction:
    """Run whatever is not done yet, and write the result.

    Raises:
        Problem: the folder holds another run, or something cannot be used; what is finished stays.
    """
    setup, say = paper.setup(scale), teller(console)
    for line in reachable(setup):
        say(line)
    corpus = _corpus(setup, folder, say)
    place = folder / "audit"
    if setup.recipe is None:
        wanted = setup.relearn()
        table: Table = reproduction.of_relearning(
            setup, relearning.run(wanted, place, corpus, auditing.workers(processes), say)
        )
    else:
        done = auditing.run(setup.audit(corpus), place, console, processes)
        table = reproduction.of_audit(setup, Evidence.read(done))
    found = reproduction.concluded(name, paper, scale, table)
    disk.write(folder / RESULT, json.dumps(found.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n")
    return found


def audited(folder: Path) -> Run | None:
    """The audit of a reproduction, where that is one."""
    place = folder / "audit"
    return Run.open(place) if (place / "recipe.json").is_file() else None


def _corpus(setup: Setup, folder: Path, say: Say) -> Path | None:
    """The corpus of the paper's own data, dealt unless it lies there; None where an organism brings its own."""
    if setup.pictures is False and not any(one.deal for one in setup.data.values()):
        return None
    asked = {"seed": setup.seed, "pictures": setup.pictures}
    asked["data"] = {name: one.model_dump(mode="json") for name, one in setup.data.items()}
    mark = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
    pictured = setup.pictures is not False
    # A corpus names its pictures as they lie from there.
    file = (Path(setup.pictures).expanduser() if pictured else folder) / f"corpus-{mark[:8]}.jsonl"
    if not file.is_file():
        if pictured:
            rows, notes = Pictured(data=file.parent, seed=setup.seed).dealt()
        else:
            rows, notes = gathering.gathered(setup.data, setup.seed)
        Corpus(rows, str(file)).save(file)
        for note in notes:
            say(f"note: {note}")
    say(f"corpus: {file}")
    return file
