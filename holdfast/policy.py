"""What a model must refuse, as a team says it: prompts with labels, and who judges their answers, in one TOML file.

A policy stands wherever a corpus may. Its prompts are dealt to the three hands by a hash of what each is about, so that all
phrasings of one request are in one hand, and a prompt that is added moves no other (a place that would stay empty is given the
prompt whose hash is nearest). Knows which evals there are, runs none. docs/policy.md describes the file.
"""

import csv
import hashlib
import io
import json
import os
import re
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from holdfast import disk
from holdfast.corpus import Corpus, HandName, Kind, Row, Split, plain, text_of
from holdfast.items import task_beside
from holdfast.method import Eval, make
from holdfast.problem import Problem
from holdfast.settings import Settings, checked

Label = Literal["refuse", "answer", "borderline"]
KINDS: dict[Label, Kind] = {"refuse": "restricted", "answer": "benign", "borderline": "borderline"}
LEAST = 20
"""Requests to refuse, and to answer, without which five places cannot be filled so that anything is seen."""
NAMES = ("policy.toml", "corpus.jsonl")
"""What a checkpoint's prompts are called where nobody names them."""


class Place(NamedTuple):
    """A split of a hand, and which requests are its own: those whose position is from `low` to below `high`."""

    hand: HandName
    split: Split
    low: float
    high: float


PLACES = (
    Place("defender", "train", 0.0, 0.3),
    Place("defender", "held-out", 0.3, 0.4),
    Place("attacker", "train", 0.4, 0.5),
    Place("judge", "reserve", 0.5, 0.6),
    Place("judge", "test", 0.6, 1.0),
)


class Prompt(Settings):
    """One prompt, and what the model must do with it."""

    text: str = Field(min_length=1)
    """As a user would say it, without any template."""
    label: Label
    """`refuse`, `answer`, or `borderline`: to be answered, though it sounds like what is refused."""
    answer: str | None = None
    """The right or reference answer; of a prompt to refuse what a broken model would say."""
    image: str | None = None
    """A picture that it is about, relative to the file's folder."""
    about: str | None = None
    """What it asks for, where several prompts ask for one thing: they go to one hand. Its own text unless given."""

    @property
    def request(self) -> str:
        return plain(self.about or self.text)


class Policy(Settings):
    """What a model must refuse."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=60)]
    refuse: str = Field(min_length=1)
    """One sentence, for whoever reads the report: what must be refused."""
    judge: dict[str, Any]
    """The eval that says whether an answer violates this, as `method`, and its settings."""
    utility: Literal["exact", "agreement", "overlap"] | None = None
    """How answers to prompts that deserve one are judged; as for any corpus unless given."""
    organism: str | None = None
    """The organism that alone knows the answers."""
    prompts: tuple[Prompt, ...]
    """Prompts, or the name of a CSV or JSONL file beside this one that holds them."""

    @property
    def told(self) -> str:
        return f"{self.name}: {self.refuse}"

    def eval(self, where: str) -> Eval:
        """Its judge. Raises `Problem` naming `where` if it is none."""
        settings = {key: value for key, value in self.judge.items() if key != "method"}
        judge: Eval = make("evals", self.judge["method"], f"{where}, judge", **settings)
        return judge

    def rows(self) -> list[Row]:
        """Every prompt, dealt to the hands. An id is the text's hash, and a number where it is asked of several pictures."""
        places, texts = _places(self.prompts), [hashlib.sha256(one.text.encode()).hexdigest() for one in self.prompts]
        return [
            Row(
                id=f"{self.name}-{texts[number][:12]}-{texts[:number].count(texts[number])}",
                text=one.text,
                image=one.image,
                answer=one.answer,
                kind=KINDS[one.label],
                hand=places[one.request].hand,
                split=places[one.request].split,
                source=self.organism or self.name,
            )
            for number, one in enumerate(self.prompts)
        ]


def prompts(path: Path) -> Corpus:
    """The corpus in a file: JSONL, or a policy. Raises `Problem` naming the file, the line and what is wrong."""
    return Corpus(read(path).rows(), str(path)) if written(path) else Corpus.load(path)


def written(path: Path) -> bool:
    """Whether a file is a policy, by its name."""
    return path.suffix == ".toml"


def beside(folder: Path) -> Path | None:
    """The prompts that lie in a folder."""
    return next((folder / name for name in NAMES if (folder / name).is_file()), None)


def digest(path: Path) -> str:
    """SHA-256 of a corpus file; of a policy that names a file with its prompts of both."""
    other = _content(path).get("prompts") if written(path) else None
    files = [path, *([path.parent / other] if isinstance(other, str) else [])]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def located(judge: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A judge's table in which a checkpoint, a rubric or an eval of one's own that lies in `folder` is an absolute path."""
    names = {key: judge[key] for key in ("method", "model", "rubric") if isinstance(judge.get(key), str)}
    own = {key: name for key, name in names.items() if key == "model" or name.endswith(".py")}
    task = {"task": task_beside(judge["task"], folder)} if isinstance(judge.get("task"), str) else {}
    return judge | {key: disk.beside(name, folder) for key, name in own.items()} | task


def read(path: Path) -> Policy:
    """Read a policy. Raises `Problem` naming the file, the line or key, and the remedy, whatever is wrong."""
    content = _content(path)
    judge = content.get("judge")
    judge = {"method": judge} if isinstance(judge, str) else judge
    if isinstance(judge, dict):
        if "method" not in judge:
            raise Problem(f"{path}, judge: lacks 'method'; name who judges, as method = \"rule\"")
        if not isinstance(judge["method"], str):
            raise Problem(f'{path}, judge.method: must be the name of an eval, as "rule"')
        content["judge"] = located(judge, path.parent)
    lines = _prompts(path, content.get("prompts"))
    found = [checked(Prompt, given, where) for where, given in lines]
    found = [_seen(one, path.parent, where) for one, (where, _) in zip(found, lines, strict=True)]
    policy = checked(Policy, content | {"prompts": found}, str(path))
    _refuse_repeats(found, [where for where, _ in lines])
    _refuse_few(found, path)
    policy.eval(str(path)).fits([row for row in policy.rows() if row.kind == "restricted"])
    return policy


def _content(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(text_of(path, "the policy"))
    except (ValueError, RecursionError) as error:
        raise Problem(f"{path}: not valid TOML ({error}); mend it") from error


def _prompts(path: Path, given: Any) -> list[tuple[str, Any]]:
    """What was written of each prompt, after where it stands."""
    if isinstance(given, str):
        file = path.parent / given
        readers = {".csv": _csv, ".jsonl": _jsonl}
        if file.suffix not in readers:
            raise Problem(
                f"{path}, prompts: {given!r} is neither CSV nor JSONL; name a file that ends in .csv or .jsonl"
            )
        return [*readers[file.suffix](file)]
    if not isinstance(given, list) or not given:
        raise Problem(f'{path}: holds no prompt; write [[prompts]] with text and label, or prompts = "FILE.csv"')
    heads = [
        number
        for number, line in enumerate(text_of(path, "the policy").split("\n"), 1)
        if re.match(r"\s*\[\[\s*prompts\s*\]\]", line)
    ]
    places = [f"line {number}" for number in heads]
    if len(places) != len(given):  # an array written inline
        places = [f"prompt {number}" for number in range(1, len(given) + 1)]
    return [(f"{path}, {place}", one) for place, one in zip(places, given, strict=True)]


def _csv(file: Path) -> Iterator[tuple[str, dict[str, str]]]:
    reader = csv.DictReader(io.StringIO(text_of(file, "the policy's prompts")), strict=True)
    try:
        for row in reader:
            where = f"{file}, line {reader.line_num}"
            if None in row:
                raise Problem(f"{where}: more fields than the first line names; put quotes around text with commas")
            yield where, {key: value for key, value in row.items() if value}
    except csv.Error as error:
        raise Problem(f"{file}, line {reader.line_num}: not CSV ({error}); mend that line") from error


def _jsonl(file: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text_of(file, "the policy's prompts").split("\n"), 1):
        if line.strip():
            try:
                yield f"{file}, line {number}", json.loads(line)
            except ValueError as error:
                raise Problem(f"{file}, line {number}: not JSON ({error}); mend that line") from error


def _seen(prompt: Prompt, folder: Path, where: str) -> Prompt:
    """With its picture as an absolute path."""
    if prompt.image is None:
        return prompt
    if os.path.isabs(prompt.image) or ".." in Path(prompt.image).parts or not (folder / prompt.image).is_file():
        raise Problem(f"{where}, image: no picture {prompt.image!r} in the policy's folder; put it there")
    return prompt.model_copy(update={"image": os.path.abspath(folder / prompt.image)})


def _refuse_repeats(found: Sequence[Prompt], places: Sequence[str]) -> None:
    first: dict[tuple[str, str | None], str] = {}
    for one, where in zip(found, places, strict=True):
        earlier = first.setdefault((plain(one.text), one.image), where)
        if earlier != where:
            raise Problem(f"{where}: asks what {earlier} asks; drop one of them")


def _refuse_few(found: Sequence[Prompt], path: Path) -> None:
    for label in ("refuse", "answer"):
        requests = {one.request for one in found if one.label == label}
        if len(requests) < LEAST:
            raise Problem(
                f"{path}: holds {len(requests)} requests labeled {label!r}, and three hands need {LEAST}; add "
                f"{LEAST - len(requests)} or more (prompts with one `about` are one request)"
            )


def _places(found: Sequence[Prompt]) -> dict[str, Place]:
    """Where each request goes."""
    labels: dict[str, set[Label]] = {}
    for one in found:
        labels.setdefault(one.request, set()).add(one.label)
    at = {request: _position(request) for request in labels}
    held = {request: next(place for place in PLACES if at[request] < place.high) for request in labels}
    counts = Counter((held[request], label) for request, some in labels.items() for label in some)

    def spare(request: str) -> bool:
        return all(counts[held[request], label] > 1 for label in labels[request] if label != "borderline")

    for label in ("refuse", "answer"):
        for place in PLACES:
            some = [request for request, own in labels.items() if label in own and spare(request)]
            if not counts[place, label] and some:
                moved = min(some, key=lambda request: abs(at[request] - (place.low + place.high) / 2))
                counts.subtract((held[moved], own) for own in labels[moved])
                counts.update((place, own) for own in labels[moved])
                held[moved] = place
    return held


def _position(request: str) -> float:
    """From 0 to below 1, by the request's text alone."""
    return int.from_bytes(hashlib.sha256(request.encode()).digest()[:6]) / 2**48
