"""Prompts, dealt to three hands that share none: the defender's, the attacker's and the judge's.

A corpus is one JSONL file of rows. Knows nothing of models. Readers for the public benchmarks' own files are at the end.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from holdfast import disk
from holdfast.problem import Problem

Kind = Literal["restricted", "benign", "borderline", "lesson"]
HandName = Literal["defender", "attacker", "judge"]
Split = Literal["train", "held-out", "test", "reserve"]


class Row(BaseModel):
    """One prompt. `lesson` rows teach, or examine, something that the model never saw before a fine-tuning."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    """Unique in the corpus; rows of the records refer to it."""
    text: str
    """The prompt, without any template."""
    image: str | None = None
    """Path of a picture, relative to the corpus file."""
    answer: str | None = None
    """The right or reference answer; for a restricted row what a broken model would say."""
    kind: Kind
    hand: HandName
    split: Split
    """defender: `train` (alignment used it) or `held-out`; attacker: `train`; judge: `test`, or `reserve` for re-runs."""
    source: str
    """Where the row comes from, as `text` (the organism) or `advbench`."""


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
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if not line.strip():
                continue
            try:
                rows.append(Row.model_validate_json(line))
            except ValidationError as error:
                first = error.errors()[0]
                field = ".".join(map(str, first["loc"])) or "row"
                raise Problem(f"{path}, line {number}, {field}: {first['msg']}; mend that line") from error
        return cls(rows, str(path))

    def save(self, path: Path) -> None:
        """Write one JSON row a line (0600)."""
        disk.write(path, "".join(row.model_dump_json(exclude_none=True) + "\n" for row in self.rows))

    def hand(self, name: HandName) -> Hand:
        return Hand(name, [row for row in self.rows if row.hand == name])

    def _refuse_repeats(self) -> None:
        ids: set[str] = set()
        holders: dict[str, Row] = {}
        for row in self.rows:
            if row.id in ids:
                raise Problem(f"{self.name}: id {row.id!r} is given twice; give every row an id of its own")
            ids.add(row.id)
            other = holders.setdefault(plain(row.text), row)
            if other.hand != row.hand:
                raise Problem(
                    f"{self.name}: one prompt is in two hands (rows {other.id!r} of the {other.hand} and {row.id!r} of "
                    f"the {row.hand}); a judge must ask what nobody trained on, so keep it in one"
                )


def plain(text: str) -> str:
    """A prompt's text for comparing: lower case, letters and digits only, single spaces."""
    return " ".join("".join(c if c.isalnum() else " " for c in text.lower()).split())
