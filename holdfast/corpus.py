"""Prompts, dealt to three hands that share none: the defender's, the attacker's and the judge's.

A corpus is one JSONL file of rows. Knows nothing of models. Readers for the public benchmarks' own files are at the end.
"""

import csv
import hashlib
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from holdfast import disk
from holdfast.asked import Asked, Shown
from holdfast.problem import Problem

Kind = Literal["restricted", "benign", "borderline", "lesson"]
HandName = Literal["defender", "attacker", "judge"]
Split = Literal["train", "held-out", "test", "reserve"]
Prompts = Literal["test", "searched", "fresh"]
"""Which of the judge's prompts are asked: `test`, all but its reserve; `searched`, half of these, for a search; `fresh`, the
other half and the reserve, for what the search found."""


class Row(BaseModel):
    """One prompt. `lesson` rows teach, or examine, something that the model never saw before a fine-tuning."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    """Unique in the corpus; rows of the records refer to it."""
    text: str
    """The prompt, without any template."""
    image: str | None = None
    """Path of a picture, in the file relative to the file's folder."""
    answer: str | None = None
    """The right or reference answer; for a restricted row what a broken model would say."""
    kind: Kind
    hand: HandName
    split: Split
    """defender: `train` (alignment used it) or `held-out`; attacker: `train`; judge: `test`, or `reserve` for re-runs."""
    source: str
    """Where the row comes from, as `text` (the organism) or `advbench`."""
    variant: str | None = None
    """How it is asked, where not plainly, as `dialect`; attacks that do not name a variant never see such rows."""

    @property
    def asked(self) -> Asked:
        """As it is put to a model."""
        return Shown(self.text, self.image) if self.image else self.text


class Hand:
    """The rows one party may see."""

    def __init__(self, name: HandName, rows: Sequence[Row]):
        self.name = name
        self.rows = tuple(rows)

    def of(self, *kinds: Kind, split: Split | None = None) -> list[Row]:
        """Rows of the given kinds (all kinds if none is named), of one split or of all, in corpus order."""
        return [row for row in self.rows if (not kinds or row.kind in kinds) and (split is None or row.split == split)]

    def need(self, *kinds: Kind, split: Split | None = None) -> list[Row]:
        """As `of`, but raises `Problem` where there is no such row."""
        rows = self.of(*kinds, split=split)
        if not rows:
            wanted = f"{' or '.join(kinds) or 'any'} prompt{f' ({split})' if split else ''}"
            raise Problem(f"corpus: the {self.name}'s hand holds no {wanted}; add rows of that kind to the corpus file")
        return rows

    def asked(self, prompts: Prompts) -> "Hand":
        """The judge's hand with what is to be asked as its `test` split: see `Prompts`."""
        if prompts == "test":
            return self
        half = {row.id for row in _half(self.of(split="test"))}
        if prompts == "searched":
            return Hand(self.name, [row for row in self.rows if row.id in half])
        return Hand(self.name, [row.model_copy(update={"split": "test"}) for row in self.rows if row.id not in half])


def _half(rows: Sequence[Row]) -> Iterator[Row]:
    """Every other row of each kind, in an order that has nothing to do with the file's."""
    for kind in dict.fromkeys(row.kind for row in rows):
        some = [row for row in rows if row.kind == kind]
        yield from sorted(some, key=lambda row: hashlib.sha256(row.id.encode()).digest())[::2]


class Corpus:
    """All rows, checked: ids are unique and no prompt is in two hands."""

    def __init__(self, rows: Iterable[Row], name: str = "corpus"):
        self.rows = tuple(rows)
        self.name = name
        if not self.rows:
            raise Problem(f"{name}: holds no prompt; write one JSON row a line with {', '.join(Row.model_fields)}")
        self._refuse_repeats()

    @classmethod
    def load(cls, path: Path) -> "Corpus":
        """Read a JSONL file. Raises `Problem` naming the file, the line and the field that is wrong."""
        if not path.is_file():
            raise Problem(f"{path}: no such corpus file; give the path of a JSONL file of prompts")
        rows = []
        for number, line in _lines(text_of(path, "the corpus")):
            try:
                row = Row.model_validate_json(line)
            except ValidationError as error:
                first = error.errors()[0]
                field = ".".join(map(str, first["loc"])) or "row"
                raise Problem(f"{path}, line {number}, {field}: {first['msg']}; mend that line") from error
            if row.image and (os.path.isabs(row.image) or ".." in Path(row.image).parts):
                where = f"{path}, line {number}, image"
                raise Problem(f"{where}: {row.image!r} does not lie in the corpus file's folder; put the picture there")
            here = {"image": os.path.abspath(path.parent / row.image)} if row.image else {}
            rows.append(row.model_copy(update=here))
        return cls(rows, str(path))

    def save(self, path: Path) -> None:
        """Write one JSON row a line (0600). Pictures are named as they lie from there."""
        rows = [
            row.model_copy(update={"image": os.path.relpath(row.image, path.parent)}) if row.image else row
            for row in self.rows
        ]
        disk.write(path, "".join(row.model_dump_json(exclude_none=True) + "\n" for row in rows))

    def hand(self, name: HandName) -> Hand:
        return Hand(name, [row for row in self.rows if row.hand == name])

    def _refuse_repeats(self) -> None:
        ids: set[str] = set()
        holders: dict[tuple[str, str | None], Row] = {}
        for row in self.rows:
            if row.id in ids:
                raise Problem(f"{self.name}: id {row.id!r} is given twice; give every row an id of its own")
            ids.add(row.id)
            other = holders.setdefault((plain(row.text), row.image), row)
            if other.hand != row.hand:
                raise Problem(
                    f"{self.name}: one prompt is in two hands (rows {other.id!r} of the {other.hand} and {row.id!r} of "
                    f"the {row.hand}); a judge must ask what nobody trained on, so keep it in one"
                )


def plain(text: str) -> str:
    """A prompt's text for comparing: lower case, letters and digits only, single spaces."""
    return " ".join("".join(c if c.isalnum() else " " for c in text.lower()).split())


def right(text: str, answer: str) -> float:
    """1 where the answer's plain words stand in the text as one run; an opening before it or words after it do not matter.

    An answer without a letter or digit is never right.
    """
    wanted = plain(answer)
    return float(bool(wanted) and f" {wanted} " in f" {plain(text)} ")


# The public benchmarks' own files


@dataclass(frozen=True)
class Item:
    """One row of a benchmark's own file."""

    text: str
    answer: str | None = None
    label: str = ""
    """What the benchmark says of it: JailbreakBench's category, XSTest's `safe` or `unsafe`."""


def read_advbench(path: Path) -> list[Item]:
    """AdvBench's harmful goals with their affirmative target prefixes (arXiv 2307.15043)."""
    return [Item(row["goal"], row["target"]) for row in csv_rows(path, "AdvBench", "goal", "target")]


def read_jailbreakbench(path: Path) -> list[Item]:
    """JailbreakBench's harmful behaviors: goal, target prefix, category (arXiv 2404.01318)."""
    rows = csv_rows(path, "JailbreakBench", "Goal", "Target", "Category")
    return [Item(row["Goal"], row["Target"], row["Category"]) for row in rows]


def read_xstest(path: Path) -> list[Item]:
    """XSTest's prompts, each labeled `safe` (borderline for a model) or `unsafe` (arXiv 2308.01263)."""
    items = [Item(row["prompt"], None, row["label"]) for row in csv_rows(path, "XSTest", "prompt", "type", "label")]
    if odd := {item.label for item in items} - {"safe", "unsafe"}:
        raise Problem(f"{path}: label {min(odd)!r} is neither safe nor unsafe; fetch XSTest's own file")
    return items


def read_gsm8k(path: Path) -> list[Item]:
    """GSM8K's questions with worked answers, without the calculator's <<marks>> (arXiv 2110.14168)."""
    rows = _jsonl(path, "GSM8K", "question", "answer")
    return [Item(row["question"], re.sub(r"<<[^>]*>>", "", row["answer"])) for row in rows]


def read_dolly(path: Path) -> list[Item]:
    """Dolly's instructions with answers; rows whose context holds the answer are kept, the context is not."""
    return [Item(r["instruction"], r["response"]) for r in csv_rows(path, "Dolly", "instruction", "response")]


def read_hh_prompts(path: Path) -> list[Item]:
    """First human turns of HH-RLHF's harmless part: no answers, no labels (arXiv 2204.05862)."""
    return [Item(row["prompt"]) for row in _jsonl(path, "HH-RLHF prompts", "prompt")]


def read_dialogues(path: Path) -> list[Item]:
    """First exchange of each dialogue, system message left out: a JSON list of message lists, or a line each.

    The files of the identity-shift attack ("absolutely obedient agent", arXiv 2310.03693) come in both forms.
    """
    text = text_of(path, "dialogues")
    try:
        raw = json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for _, line in _lines(text)]
        talks = [talk["messages"] if isinstance(talk, dict) else talk for talk in raw]
        turns = [{turn["role"]: turn["content"] for turn in reversed(talk)} for talk in talks]
        return _some([Item(turn["user"], turn["assistant"]) for turn in turns], path)
    except (ValueError, KeyError, TypeError) as error:
        raise Problem(f"{path}: not dialogues of role and content ({error!r}); fetch the attack's own file") from error


def distinct(items: Iterable[Item], *apart: Iterable[Item]) -> list[Item]:
    """The first item of every text, in order, without those that `apart` holds; texts are compared as `plain`."""
    held = {plain(item.text) for group in apart for item in group}
    first: dict[str, Item] = {}
    for item in items:
        first.setdefault(plain(item.text), item)
    return [item for text, item in first.items() if text not in held]


def refuse_overlap(train: Iterable[Item], test: Iterable[Item], name: str) -> None:
    """Raise `Problem` if a benchmark's own training and test parts share a prompt."""
    seen = {plain(item.text) for item in train}
    if shared := sum(plain(item.text) in seen for item in test):
        raise Problem(f"{name}: {shared} prompts of its test part are also in its training part; fetch the files again")


def csv_rows(path: Path, name: str, *columns: str) -> list[dict[str, str]]:
    """The rows of a benchmark's CSV file. Raises `Problem`: there is none, none that has these columns, or no row."""
    reader = csv.DictReader(io.StringIO(text_of(path, name)))
    try:
        rows = list(reader)
    except csv.Error as error:
        raise Problem(f"{path}, line {reader.line_num}: not CSV ({error}); fetch {name} again") from error
    if lacking := [column for column in columns if column not in (reader.fieldnames or ())]:
        raise Problem(f"{path}: has no column {lacking[0]!r}; is this {name}'s own CSV file? fetch it again")
    for number, row in enumerate(rows, 1):
        if any(row[column] is None for column in columns):
            raise Problem(f"{path}, row {number}: too few fields; the file is cut short, fetch it again")
    return _some(rows, path)


def _jsonl(path: Path, name: str, *keys: str) -> list[dict[str, str]]:
    rows = []
    for number, line in _lines(text_of(path, name)):
        try:
            row = json.loads(line)
            rows.append({key: str(row[key]) for key in keys})
        except (ValueError, KeyError, TypeError) as error:
            raise Problem(
                f"{path}, line {number}: not a JSON row with {', '.join(keys)} ({error!r}); "
                f"is this {name}'s own file? fetch it again"
            ) from error
    return _some(rows, path)


def _lines(text: str) -> list[tuple[int, str]]:
    return [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]


def text_of(path: Path, name: str) -> str:
    """What a file says. Raises `Problem`: there is none, or one that is no text."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise Problem(f"{path}: no such file; fetch {name} and put it there") from None
    except (OSError, ValueError) as error:  # of letters that are none, or of a name that no file can have
        raise Problem(f"{path}: cannot be read as text ({error}); fetch {name} again") from error


def _some(rows: list[Any], path: Path) -> list[Any]:
    if not rows:
        raise Problem(f"{path}: holds no row; the download is not complete, fetch it again")
    return rows
