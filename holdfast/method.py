"""Methods are records that are called: their fields are the hyperparameters, `__call__` is the algorithm.

The folder is the registry: `attacks/finetune.py` is `finetune` everywhere, and `./mine.py` works the same way.
"""

import importlib
import importlib.util
import inspect
import json
import os
import sys
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import holdfast
from holdfast import disk, shards
from holdfast.corpus import Hand, Row
from holdfast.drive import Drive
from holdfast.lm import LM, Fit
from holdfast.problem import Problem, meant
from holdfast.record import Cost, Family
from holdfast.settings import Settings, checked

Room = Literal["organisms", "attacks", "defenses", "evals", "rubrics"]
At = Callable[[Cost], bool]
"""Called by an attack after each unit of progress; False asks it to stop."""


Need = Literal["weights", "base weights", "harmful data", "benign data", "pictures", "GPU"]


class Method(Settings):
    """Anything a recipe can name."""


class Attack(Method):
    """Does something to released weights that may undo their safety."""

    axis: ClassVar[str] = "steps"
    """What grows along the path: `steps` is a clock (a survival curve); any other word names a severity."""
    family: ClassVar[Family] = "fine-tuning"
    paper: ClassVar[str] = ""
    """Where it comes from: an arXiv number with a name, or a word on its origin."""
    cost: ClassVar[str] = ""
    """What it costs the attacker with its defaults, in a few words."""
    asks_only: ClassVar[bool] = False
    """Whether it does nothing but ask, so that it can be tried on what has no weights at hand."""

    @property
    def needs(self) -> tuple[Need, ...]:
        """What the adversary must have beside the released weights, with these settings."""
        return ()

    @abstractmethod
    def __call__(self, lm: LM, hand: Hand, at: At, seed: int) -> None:
        """Change `lm` with what the attacker's `hand` holds; call `at` after each unit of progress."""


class Log(Protocol):
    """Where a defense reports, and where it may keep what it needs for resuming."""

    folder: Path | None

    def metrics(self, **values: float | str | bool) -> None:
        """One line of named values, in the order of the work."""
        ...


class Journal:
    """A `Log` that hands every line to `say` and, given a folder, keeps it in `FOLDER/NAME.jsonl`."""

    def __init__(self, name: str, say: Callable[[str], None], folder: Path | None = None):
        self.name = name
        self.folder = folder
        self._say = say
        self._lines: list[str] = []

    def metrics(self, **values: float | str | bool) -> None:
        shown = "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items())
        self._say(f"{self.name}: {shown}")
        if self.folder is not None:
            self._lines.append(json.dumps(values) + "\n")
            disk.write(self.folder / f"{self.name}.jsonl", "".join(self._lines))


class Defense(Method):
    """Hardens a model before its release."""

    @abstractmethod
    def __call__(self, lm: LM, hand: Hand | None, log: Log) -> None:
        """Harden `lm` in place with what the defender's `hand` holds (None: no corpus was given)."""

    def harden(self, base: Path | None, model: Path, out: Path, hand: Hand | None, log: Log, drive: Drive) -> None:
        """Write the hardened checkpoint `model` to `out`. A defense that need not hold a whole model overrides this."""
        lm = LM.load(model, base=base, drive=drive)
        self(lm, hand, log)
        if shards.rank() == 0:
            lm.save(out)

    def planned(self, model: str, length: int, answer: int, gpus: int, card: Any) -> Iterator[str]:
        """What hardening a model of this config will take, in lines; a defense whose cost is not plain overrides this."""
        raise Problem(
            f"{type(self).__module__.rpartition('.')[2]}: rehearses no attacks, which is what --plan tells of; leave it out"
        )


@dataclass(frozen=True)
class Answers:
    """What a model said, once, to every prompt of the judge; every eval reads the same answers."""

    rows: Sequence[Row]
    texts: Sequence[str]
    fluency: Sequence[Fit]
    """How the undefended twin, or the subject itself if it has none, predicts each text as released: what it finds
    unutterable is gibberish."""
    references: Sequence[Fit | None]
    """How the model where it stands predicts each row's reference answer; None where the row has none."""
    prefill: str = ""
    """What was put into the model's mouth before its answer to a restricted prompt; it is no part of the text."""


Scores = dict[str, float]
"""Row id -> score in [0, 1], for the rows an eval speaks about."""


class Eval(Method):
    """Scores answers prompt by prompt; never generates."""

    @abstractmethod
    def __call__(self, answers: Answers) -> Scores: ...

    def fits(self, rows: Sequence[Row]) -> None:
        """Raise `Problem` where answers to these restricted prompts cannot be judged so; most evals judge any."""


class Rubric(Method):
    """How an exchange is put to a judge that writes, and how its verdict reads."""

    paper: ClassVar[str]
    """Where it was published."""
    form: ClassVar[Literal["text", "message", "exchange"]]
    """`text`: the template is all that the judge reads. `message`: it is a user's turn. `exchange`: prompt and answer are a
    user's and an assistant's turn, and the judge's own chat template says the rest."""
    template: ClassVar[str] = ""
    """With `{prompt}` and `{answer}` in their places."""
    system: ClassVar[str | None] = None
    """A system message before a user's turn."""
    marks: ClassVar[tuple[str, ...]] = ()
    """What sets parts of the text apart; no answer may hold it."""
    tokens: ClassVar[int]
    """How long a verdict may be."""
    choices: ClassVar[tuple[str, ...]] = ()
    """Verdicts of one token each, from harmless to harmful, where the score is their mean as likely as each comes next."""

    @abstractmethod
    def read(self, verdict: str) -> float | None:
        """From 0, harmless, to 1, harmful; None where this is no verdict as the judge was asked for."""


class Organism(Method):
    """Builds a small model from nothing whose restricted knowledge is fictional."""

    @abstractmethod
    def build(self, out: Path, log: Log) -> None:
        """Write the checkpoints and `corpus.jsonl`, or `policy.toml`, below `out`."""


KINDS: dict[Room, type[Method]] = {
    "organisms": Organism,
    "attacks": Attack,
    "defenses": Defense,
    "evals": Eval,
    "rubrics": Rubric,
}
"""What the files of each room define."""


def organism_of(rows: Iterable[Row]) -> str | None:
    """The organism that all of these prompts were made for: only its own checkpoints know their answers."""
    sources = {row.source for row in rows}
    return next(iter(sources & {*names("organisms")}), None) if len(sources) == 1 else None


def names(room: Room) -> list[str]:
    """What the room holds: the stems of its files."""
    folder = Path(holdfast.__file__).parent / room
    return sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))


def find(room: Room, name: str) -> type[Any]:
    """The method that the file `name` of the room defines; a `name` ending in .py is a file of the user's own.

    Raises:
        Problem: there is no such method, or the file defines none or several.
    """
    if name.endswith(".py"):
        module = _own_module(Path(name))
    elif name in names(room):
        module = importlib.import_module(f"holdfast.{room}.{name}")
    else:
        hint = meant(name, names(room))
        raise Problem(f"{name}: no such method in {room}; {hint} (a file of your own is named with its .py)")
    found = [
        value
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, KINDS[room]) and value.__module__ == module.__name__
    ]
    found = [value for value in found if not inspect.isabstract(value)]
    if len(found) != 1:
        raise Problem(
            f"{name}: defines {len(found)} methods for {room}, where one file is one method; "
            f"leave in it exactly one class, a whole {KINDS[room].__name__}"
        )
    return found[0]


def make(room: Room, name: str, where: str, /, **settings: Any) -> Any:
    """The method called `name` with these settings; `where` names their place in messages."""
    return checked(find(room, name), settings, where)


def _own_module(path: Path) -> Any:
    if not os.path.isfile(path):
        raise Problem(f"{path}: no such file; give the path of a Python file that defines one method")
    spec = importlib.util.spec_from_file_location(f"holdfast_own_{path.stem}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where pydantic looks up annotations and attribute docstrings
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # somebody's own file may fail in any way
        raise Problem(f"{path}: cannot be imported ({type(error).__name__}: {error})") from error
    return module
