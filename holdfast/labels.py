"""What people said of a run's answers, as it lies in the run's folder.

`labels/sheet.json` holds the answers that were drawn, in the order in which they are shown, and `labels/by/NAME.json` what one
labeler said of them. Others' tools get the same sheet as CSV. Knows no statistics.
"""

import csv
import io
from collections import Counter
from collections.abc import Container
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, TypeVar

from pydantic import StringConstraints, TypeAdapter, ValidationError

from holdfast import disk
from holdfast.corpus import csv_rows
from holdfast.problem import Problem
from holdfast.record import Record
from holdfast.run import Run

Said = Literal["harmful", "not", "unsure"]
By = Literal["attack", "family"]
WORDS: dict[str, Said] = {
    "harmful": "harmful",
    "h": "harmful",
    "not": "not",
    "n": "not",
    "unsure": "unsure",
    "u": "unsure",
}
"""What a label may be called, in lower case."""
Who = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=60)]
COLUMNS = ("id", "prompt", "image", "answer", "label")
_RISKY = ("=", "+", "-", "@", "\t", "\r")
"""How a cell begins that a spreadsheet would compute."""


Kept = TypeVar("Kept", bound=Record)


class Drawn(Record):
    """One answer to be labeled, and where it comes from, which labelers are not shown."""

    id: str
    """Tells nothing; no answer of another run has it."""
    cell: str
    milestone: int
    prompt: str
    """The prompt's id in the corpus."""
    kind: str
    """The kind of answer that it was drawn for."""
    called: bool
    """Whether the judge calls it harmful."""
    answer_hash: str
    text: str
    """The prompt."""
    image: str | None = None
    answer: str


class Sheet(Record):
    """The answers that were drawn."""

    seed: int
    by: By
    """Whether kinds of answers are single attacks' or attack families'."""
    drawn: tuple[Drawn, ...]


class Labels(Record):
    """What one labeler said, by the answers' ids."""

    who: Who
    said: dict[str, Said]


class Given(NamedTuple):
    """All labels of a run."""

    sheet: Sheet
    hands: tuple[Labels, ...]
    strays: frozenset[str]
    """Ids of drawn answers that the run does not hold any more."""

    def decided(self) -> dict[str, Said]:
        """By id what most labelers said; `unsure` where as many said one thing as another."""
        found: dict[str, Said] = {}
        for one in self.sheet.drawn:
            votes = Counter(hand.said[one.id] for hand in self.hands if one.id in hand.said)
            if votes and one.id not in self.strays:
                best, *next_best = votes.most_common(2)
                found[one.id] = "unsure" if next_best and next_best[0][1] == best[1] else best[0]
        return found


def given(run: Run, names: Container[str]) -> Given | None:
    """The labels of a run that has the cells of these names; None where nothing was drawn, or nobody said anything."""
    drawn = sheet(run)
    hands = tuple(hand for hand in everybody(run) if hand.said) if drawn else ()
    if drawn is None or not hands:
        return None
    asked = sorted({one.cell for one in drawn.drawn if one.cell in names})
    held = {(cell, row["milestone"], row["id"], row["answer_hash"]) for cell in asked for row in run.rows(cell)
            if "answer_hash" in row}  # fmt: skip
    strays = (one.id for one in drawn.drawn if (one.cell, one.milestone, one.prompt, one.answer_hash) not in held)
    return Given(drawn, hands, frozenset(strays))


def sheet(run: Run) -> Sheet | None:
    """The answers drawn from a run; None if none were. Raises `Problem` if the file is damaged."""
    return _read(run, "labels/sheet.json", Sheet) if (run.folder / "labels/sheet.json").is_file() else None


def keep(run: Run, drawn: Sheet) -> None:
    run.write("labels/sheet.json", drawn.model_dump(mode="json"))


def everybody(run: Run) -> list[Labels]:
    """All labelers with what they said, by name."""
    paths = sorted((run.folder / "labels/by").glob("*.json"))
    return [_read(run, f"labels/by/{path.name}", Labels) for path in paths]


def of(run: Run, who: str) -> Labels:
    """One labeler with what he said so far. Raises `Problem` for a name that cannot be a file's."""
    try:
        named = TypeAdapter(Who).validate_python(who)
    except ValidationError as error:
        raise Problem(f"--who {who!r}: not a name to keep labels under; give letters, digits, - and _") from error
    known = run.folder / f"labels/by/{named}.json"
    return _read(run, f"labels/by/{named}.json", Labels) if known.is_file() else Labels(who=named, said={})


def say(run: Run, labels: Labels) -> None:
    """Keep what one labeler said so far."""
    run.write(f"labels/by/{labels.who}.json", labels.model_dump(mode="json"))


def export(drawn: Sheet, labels: Labels, path: Path) -> None:
    """Write the blind sheet as CSV, with the labels that are there, for others to fill in (0600).

    A cell that a spreadsheet would take for a formula gets an apostrophe before it.
    """
    sink = io.StringIO()
    table = csv.writer(sink)
    table.writerow(COLUMNS)
    for one in drawn.drawn:
        line = (one.id, one.text, one.image or "", one.answer, labels.said.get(one.id, ""))
        table.writerow([f"'{cell}" if cell.startswith(_RISKY) else cell for cell in line])
    disk.write(path, sink.getvalue().encode("utf-8", "replace"))


def filled(drawn: Sheet, path: Path) -> dict[str, Said]:
    """The labels of a CSV file with columns `id` and `label`; rows without a label are passed over.

    Raises:
        Problem: naming the file and the row, where an id is not of this sheet or stands twice, or a label is none.
    """
    known, found = {one.id for one in drawn.drawn}, {}
    for number, row in enumerate(csv_rows(path, "the sheet", "id", "label"), 1):
        name, label = row["id"].strip(), row["label"].strip().lower()
        if name not in known:
            raise Problem(f"{path}, row {number}: no answer of this run's sheet has the id {name!r}; export it again")
        if name in found:
            raise Problem(f"{path}, row {number}: id {name!r} stands twice; label each answer once")
        if label and label not in WORDS:
            raise Problem(f"{path}, row {number}: label {label!r} is none; write harmful, not or unsure")
        if label:
            found[name] = WORDS[label]
    if not found:
        raise Problem(f"{path}: holds no label; fill in the column `label` with harmful, not or unsure")
    return found


def _read(run: Run, name: str, kind: type[Kept]) -> Kept:
    try:
        return kind.model_validate(run.read(name))
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise Problem(f"{run.folder}/{name}, {where}: not a record of labels; mend or delete the file") from error
