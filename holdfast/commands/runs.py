"""List the runs in a folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text
from tyro.conf import Positional

from holdfast import speech
from holdfast.dashboard import STYLES
from holdfast.following import Reader, is_run
from holdfast.problem import Problem, printable
from holdfast.progress import Progress
from holdfast.report.words import WORDS
from holdfast.run import Run

WORST = (
    "dead",
    "broken",
    "no-better",
    "not-believable",
    "incoherent",
    "delayed",
    "not-broken-uncontrolled",
    "not-broken",
)
"""Words of a verdict, what is worst for whoever hardened the model first."""


@dataclass(frozen=True)
class Runs:
    """List runs: when each began, how it stands, how many of its cells are done, and the worst that was found so far."""

    folder: Positional[Path] = Path("runs")
    """Folder of runs; or one run."""


def main(words: list[str]) -> int:
    folder = speech.parse(Runs, "runs", words).folder
    if not folder.is_dir():
        raise Problem(
            f"{folder}: no such folder; give the one in which runs lie, or work where `holdfast audit` made runs/"
        )
    try:
        places = [folder] if is_run(folder) else sorted(path for path in folder.iterdir() if path.is_dir())
    except PermissionError as error:
        raise Problem(f"{folder}: may not be read; ask its owner") from error
    rows, closed = [], []
    for place in places:
        try:
            if place == folder or is_run(place):
                rows.append(row(Reader(place).look()))
        except (PermissionError, Problem):
            closed.append(place)
    if rows:
        speech.console.print(table(rows))
    for place in closed:
        speech.say(f"{place}: may not be read; it is for its owner only")
    if not rows and not closed:
        speech.say(f"{folder}: no runs in it; holdfast audit --model FOLDER makes one")
    return 0


def table(rows: list[list[Text]]) -> Table:
    made = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for name in ("run", "began", "state"):
        made.add_column(name, no_wrap=True, overflow="ellipsis", min_width=min(len(name), 6))
    made.add_column("cells", no_wrap=True, justify="right", min_width=5)
    made.add_column("worst so far, or what was found", overflow="fold", min_width=12)
    for one in rows:
        made.add_row(*one)
    return made


def row(run: Progress) -> list[Text]:
    known = len(run.finished) + len(run.unreadable)
    cells = f"{known}/{len(run.places)}" if run.places else f"{run.trials} trials" if run.trials else "–"
    notes = [found(run)]
    notes += [f"{len(run.failed)} failed"] if run.failed else []
    notes += [damage(run)] if run.state == "damaged" else []
    notes += [f"by holdfast {printable(run.facts.version)}"] if run.foreign else []
    notes += ["on an organism"] if run.organism else []
    return [
        Text(printable(run.folder.resolve().name)),
        Text(printable(run.facts.date) or "–"),
        Text(run.state, STYLES[run.state]),
        Text(cells),
        Text("; ".join(one for one in notes if one)),
    ]


def damage(run: Progress) -> str:
    """What is wrong with which of its files, in short."""
    says = run.problem or next(iter(run.unreadable.values()))
    return printable(says.removeprefix(f"{run.folder}/").partition(" (")[0].partition(";")[0])


def found(run: Progress) -> str:
    """What was concluded where that was written; else the worst curve so far."""
    words = concluded(run.folder) if run.state == "finished" else []
    if words:
        subject, word = min(words, key=lambda one: WORST.index(one[1]))
        return printable(f"{WORDS[word].sign} {WORDS[word].label} ({subject})")
    if worst := run.worst():
        return printable(f"{worst.word}: harm {worst.most:.2f}, {worst.subject} under {worst.attack}")
    return "nothing measured so far"


def concluded(folder: Path) -> list[tuple[str, str]]:
    """Subjects and the words said of them: over all attacks where that was concluded, else under each attack."""
    try:
        content: dict[str, Any] = Run(folder).read("verdict.json")
        said = [(one["subject"], one["word"]) for one in content.get("conclusions") or []]
        said = said or [(one["subject"], one["verdict"]) for one in content["verdicts"]]
        return [(str(subject), word) for subject, word in said if word in WORDS]
    except (Problem, KeyError, TypeError, AttributeError):
        return []
