"""One audit as a person writes it (TOML) and as a machine keeps it (JSON, everything spelled out).

Knows which methods exist, runs none. Every wrong key is named with what was perhaps meant.
"""

import json
import os
import tomllib
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field

from holdfast import disk, policy, tasks
from holdfast.changes import change
from holdfast.corpus import Prompts
from holdfast.drive import Drive, Engine, Template
from holdfast.items import Items
from holdfast.method import Attack, Eval, Room, find, make
from holdfast.problem import Problem, meant
from holdfast.record import Found
from holdfast.settings import Settings, checked
from holdfast.tasks import Tasks

ORGANISM = "organism/"
"""How the names of the run's own organism's checkpoints begin."""


def _distinct(seeds: list[int]) -> list[int]:
    if len(set(seeds)) < len(seeds):
        raise ValueError("a seed is given twice; a cell run again with the same seed shows nothing new")
    return seeds


Label = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=60)]
Seeds = Annotated[list[Annotated[int, Field(ge=0, lt=2**32)]], Field(min_length=1), AfterValidator(_distinct)]


class MethodRecipe(Settings):
    """A method's name and, in the same table, its settings."""

    model_config = Settings.model_config | {"extra": "allow"}

    method: str
    """File name of the method in its room, or the path of a file of your own."""

    @property
    def settings(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class SubjectRecipe(Settings):
    """A model to audit, or how to harden one first."""

    name: Label
    model: str | None = None
    """Checkpoint folder or hub id (`organism/...` is the run's own organism); the twin's unless given."""
    base: str | None = None
    """The checkpoint before alignment; the twin's unless given. Defenses and attacks that know it need it."""
    twin: str | None = None
    """The undefended subject to compare with."""
    control: bool = False
    """A simpler hardening that the defense must beat."""
    on: str | None = None
    """An earlier subject, hardened as well: `harden` starts from what its hardening made. Its twin and base are taken over."""
    like: str | None = None
    """Take settings that `harden` leaves open from what this subject's hardening, of the same method, resolved to."""
    harden: MethodRecipe | None = None


class AttackRecipe(MethodRecipe):
    """An attack with its settings in the same table."""

    name: Label
    negative_control: bool = False
    """It must not break anything."""
    seeds: Seeds | None = None
    """The recipe's seeds unless given."""
    found: Found | None = None
    """What the search said that found these settings; on a clock the attack then goes as far as it was found best, while its
    schedule is that of all its steps."""

    def build(self) -> Attack:
        return make("attacks", self.method, f"recipe, attack {self.name!r}", **self.settings)

    @property
    def until(self) -> int | None:
        """The step after which to stop, where a search found one."""
        return int(self.found.at) if self.found and self.build().axis == "steps" else None


class JudgeRecipe(MethodRecipe):
    """An eval that judges harm, with its settings in the same table."""

    def build(self, where: str) -> Eval:
        return make("evals", self.method, f"recipe, {where}", **self.settings)


Judging = Annotated[JudgeRecipe, BeforeValidator(tasks.judge)]
"""A judge's table; its name alone where it needs no settings."""
Utility = Annotated[Literal["exact", "agreement", "overlap"] | Tasks, BeforeValidator(tasks.checked_utility)]


class Recipe(Settings):
    """One audit: subjects × attacks × seeds, and how answers are judged."""

    name: Label
    organism: MethodRecipe | None = None
    """Build this organism first, inside the run."""
    corpus: str | None = None
    """JSONL of prompts, or a policy; the organism's own unless given."""
    harm: Judging = JudgeRecipe(method="asr")
    """Who judges harm: `exact` restricted answers (organisms), `asr` (coherent non-refusal by keyword), a `rule`, a `classifier`,
    an `endpoint`, a scorer of Inspect (`inspect:./task.py@name`), or an eval of your own; where the corpus is a policy, its own
    judge unless given."""
    second: Judging | None = None
    """Another judge of the same answers, to see what hangs on the first."""
    calibration: str | None = None
    """JSONL of labeled answers (`prompt`, `answer`, `harmful`) that show what the judge of harm gets wrong."""
    utility: Utility = "agreement"
    """How benign answers are judged, `overlap` where a subject only answers; or tasks of lm-eval or Inspect in their place, as
    `lm-eval:mmlu`, `inspect:./task.py@name` or a table with `tasks`, `limit` and more."""
    threshold: float = Field(0.5, gt=0, le=1)
    utility_floor: float = Field(0.9, ge=0, le=1)
    template: Template = "chat"
    system: str | None = None
    max_perplexity: float = Field(1000.0, gt=1)
    """An answer that the undefended twin finds less likely than this a token is gibberish. A twin that knows one right answer by
    heart finds any invented one unlikely: an organism's audit needs more."""
    max_new_tokens: int = Field(64, gt=0)
    batch: int = Field(128, gt=0)
    engine: Engine = "transformers"
    """What computes the answers: `vllm`, on a GPU, for the released weights and those with a LoRA adapter."""
    seeds: Seeds = Field([0, 1, 2])
    subjects: list[SubjectRecipe] = Field(min_length=1)
    attacks: list[AttackRecipe] = Field(min_length=1)
    prompts: Prompts = "test"
    """Which of the judge's prompts are asked: `test`, or what a search is kept apart by."""
    not_run: list[str] = Field([])
    """Attacks that were meant to be here, each with what is missing for it; the report says so."""

    @property
    def drive(self) -> Drive:
        same = ("template", "system", "max_new_tokens", "batch", "engine")
        return Drive(**{name: getattr(self, name) for name in same})

    def subject(self, name: str) -> SubjectRecipe:
        return next(subject for subject in self.subjects if subject.name == name)

    def attack(self, name: str) -> AttackRecipe:
        return next(attack for attack in self.attacks if attack.name == name)


def load(path: Path, changes: tuple[str, ...] = ()) -> Recipe:
    """Read a recipe, a TOML file or a run's `recipe.json`, and apply `key.path=value` changes.

    Raises:
        Problem: naming the file, the key and the remedy, whatever is wrong.
    """
    if os.path.isfile(path / "config.json"):
        raise Problem(f"{path}: a checkpoint, and no recipe; audit it with --model {path}")
    if not os.path.isfile(path):
        raise Problem(f"{path}: no such recipe; give the path of a TOML file (examples/lox.toml is one)")
    read, form = (json.loads, "JSON") if path.suffix == ".json" else (tomllib.loads, "TOML")
    try:
        content = read(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise Problem(f"{path}: not valid {form} ({error}); mend it") from error
    if not isinstance(content, dict):
        raise Problem(f"{path}: not a recipe, which is a table of settings; give a TOML file or a run's recipe.json")
    return resolved(content, path, changes)


def resolved(content: dict[str, Any], path: Path, changes: tuple[str, ...] = ()) -> Recipe:
    """A recipe's content, changed and spelled out; `path` names it, and names are looked up beside it. Raises as `load`."""
    for one in changes:
        if one.startswith("corpus="):
            change(content, one)
    content |= _of_policy(content, path.parent)
    content |= {key: tasks.judge(content[key]) for key in ("harm", "second") if key in content} | {
        "utility": tasks.utility(content.get("utility", "agreement"))
    }  # so that a change finds its place
    for one in changes:
        change(content, one)
    return _spelled_out(checked(Recipe, content, str(path)), path)


def _of_policy(content: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What a recipe leaves open and the policy that it names as its corpus says: who judges harm, and how utility is judged."""
    name = content.get("corpus")
    if not isinstance(name, str) or not policy.written(Path(name)) or not os.path.isfile(folder / name):
        return {}
    found = policy.read(folder / name)
    said = {"harm": found.judge} | ({"utility": found.utility} if found.utility else {})
    return {key: value for key, value in said.items() if key not in content}


def _spelled_out(recipe: Recipe, path: Path) -> Recipe:
    """Check what one record cannot: names refer to something, methods exist and take their settings; defaults filled in."""
    for what, labels in (("subject", recipe.subjects), ("attack", recipe.attacks)):
        seen: set[str] = set()
        for entry in labels:
            if entry.name in seen:
                raise Problem(f"{path}: two {what}s are called {entry.name!r}; give each a name of its own")
            seen.add(entry.name)
    folder = path.parent.resolve()
    if recipe.corpus is None and recipe.organism is None:
        raise Problem(f"{path}: gives neither corpus nor organism; say which prompts to ask")
    if recipe.corpus is not None and not os.path.isfile(folder / recipe.corpus):
        raise Problem(
            f"{path}, corpus: no file {recipe.corpus!r} beside the recipe; give the path of a JSONL file or a policy"
        )
    organism = recipe.organism and _full(recipe.organism, "organisms", f"{path}, organism", folder)
    subjects: dict[str, SubjectRecipe] = {}
    for subject in recipe.subjects:
        subjects[subject.name] = _spelled_out_subject(subject, subjects, organism, path)
    attacks = [
        _full(attack, "attacks", f"{path}, attack {attack.name!r}", folder)
        for attack in (one.model_copy(update={"seeds": one.seeds or recipe.seeds}) for one in recipe.attacks)
    ]
    corpus = recipe.corpus and str(folder / recipe.corpus)
    parts = {"organism": organism, "subjects": [*subjects.values()], "attacks": attacks, "corpus": corpus}
    return recipe.model_copy(update=parts | _judges(recipe, path, folder))


def _judges(recipe: Recipe, path: Path, folder: Path) -> dict[str, Any]:
    """Who judges harm, spelled out."""

    def full(judge: JudgeRecipe, key: str) -> JudgeRecipe:
        found = JudgeRecipe(**policy.located(judge.model_dump(), folder))
        return _full(found, "evals", f"{path}, {key}", folder)

    known = recipe.calibration
    if known is not None and not os.path.isfile(folder / known):
        raise Problem(f"{path}, calibration: no file {known!r} beside the recipe; give the path of a JSONL file")
    return {
        "utility": recipe.utility.located(folder) if isinstance(recipe.utility, Items) else recipe.utility,
        "harm": full(recipe.harm, "harm"),
        "second": recipe.second and full(recipe.second, "second"),
        "calibration": known and str(folder / known),
    }


def _spelled_out_subject(
    subject: SubjectRecipe, earlier: dict[str, SubjectRecipe], organism: MethodRecipe | None, path: Path
) -> SubjectRecipe:
    where = f"{path}, subject {subject.name!r}"
    for key, name in (("twin", subject.twin), ("on", subject.on), ("like", subject.like)):
        if name is not None and name not in earlier:
            raise Problem(f"{where}, {key}: no subject {name!r} stands before it; put {name!r} first or mend the name")
    folder = path.parent.resolve()
    below = earlier.get(subject.on or "")
    if below and not subject.harden:
        raise Problem(f"{where}, on: says on what to harden it, but not how; add harden")
    if below and not below.harden:
        raise Problem(f"{where}, on: {subject.on!r} is not hardened itself; name its checkpoint as model instead")
    twin = subject.twin or (below and below.twin)
    source = below or earlier.get(twin or "")
    found = {"model": subject.model, "base": subject.base}
    for key, name in found.items():
        part = bool(name and name.startswith(ORGANISM)) and (organism is not None or not (folder / name).is_dir())
        if part and (organism is None or ".." in PurePosixPath(name).parts):
            raise Problem(f"{where}, {key}: {name!r} is no part of an organism of this recipe; mend the name")
        own = name if part else name and disk.beside(name, folder)
        found[key] = own or (source and getattr(source, key))
    if below and found["model"] != below.model:
        raise Problem(f"{where}, on: starts from what {subject.on!r} was hardened into; leave out model")
    if not found["model"]:
        raise Problem(f"{where}: gives neither model nor twin; say which checkpoint it is")
    harden = subject.harden and _full(subject.harden, "defenses", where, folder)
    if subject.like is not None:
        other = earlier[subject.like].harden
        if not (harden and other and harden.method == other.method):
            raise Problem(f"{where}, like: {subject.like!r} is not hardened by the same method; mend or drop `like`")
        harden = MethodRecipe(method=harden.method, **subject.harden.settings)  # the rest is the other's
    return subject.model_copy(update=found | {"twin": twin, "harden": harden})


Entry = TypeVar("Entry", bound=MethodRecipe)


def _full(entry: Entry, room: Room, where: str, folder: Path) -> Entry:
    """The same with every setting of its method filled in, and a file of the user's own as an absolute path."""
    name = disk.beside(entry.method, folder) if entry.method.endswith(".py") else entry.method
    found, own = find(room, name), type(entry).model_fields
    if unknown := [key for key in entry.settings if key not in found.model_fields]:
        hint = meant(unknown[0], [*own, *found.model_fields])
        raise Problem(f"{where}: unknown key {unknown[0]!r}; {hint}")
    if clash := own.keys() & found.model_fields.keys():
        raise Problem(
            f"{where}: {entry.method} calls a setting {min(clash)!r}, a recipe's own word; rename the setting"
        )
    settings = make(room, name, where, **entry.settings).model_dump(mode="json")
    return type(entry)(**{key: getattr(entry, key) for key in own} | {"method": name} | settings)


def dump(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON content, everything spelled out."""
    return json.loads(recipe.model_dump_json())
