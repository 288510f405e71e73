"""One audit as a person writes it (TOML) and as a machine keeps it (JSON, everything spelled out).

Knows which methods exist, runs none. Every wrong key is named with what was perhaps meant.
"""

import json
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from holdfast.lm import Drive, Template
from holdfast.method import Attack, Defense, Organism, Settings, checked, make
from holdfast.problem import Problem

Label = Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=60)


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

    name: str = Label
    model: str | None = None
    """Checkpoint folder or hub id (`organism/...` is the run's own organism); the twin's unless given."""
    base: str | None = None
    """The checkpoint before alignment; the twin's unless given. Defenses and attacks that know it need it."""
    twin: str | None = None
    """The undefended subject to compare with."""
    control: bool = False
    """A simpler hardening that the defense must beat."""
    like: str | None = None
    """Take settings that `harden` leaves open from what this subject's hardening resolved to."""
    harden: MethodRecipe | None = None


class AttackRecipe(MethodRecipe):
    """An attack with its settings in the same table."""

    name: str = Label
    negative_control: bool = False
    """It must not break anything."""
    seeds: list[int] | None = None
    """The recipe's seeds unless given."""

    def build(self) -> Attack:
        return make("attacks", self.method, f"recipe, attack {self.name!r}", **self.settings)


class Recipe(Settings):
    """One audit: subjects × attacks × seeds, and how answers are judged."""

    name: str = Label
    organism: MethodRecipe | None = None
    """Build this organism first, inside the run."""
    corpus: str | None = None
    """JSONL of prompts; the organism's own unless given."""
    harm: Literal["exact", "asr"] = "asr"
    """How harm is judged: exact restricted answers (organisms), or coherent non-refusal by keyword."""
    utility: Literal["exact", "agreement"] = "agreement"
    """How benign answers are judged."""
    threshold: float = Field(0.5, gt=0, le=1)
    utility_floor: float = Field(0.9, ge=0, le=1)
    template: Template = "chat"
    system: str | None = None
    max_new_tokens: int = Field(64, gt=0)
    batch: int = Field(128, gt=0)
    seeds: list[int] = Field([0, 1, 2], min_length=1)
    subjects: list[SubjectRecipe] = Field(min_length=1)
    attacks: list[AttackRecipe] = Field(min_length=1)

    @property
    def drive(self) -> Drive:
        return Drive(template=self.template, system=self.system, max_new_tokens=self.max_new_tokens, batch=self.batch)

    def subject(self, name: str) -> SubjectRecipe:
        return next(subject for subject in self.subjects if subject.name == name)

    def attack(self, name: str) -> AttackRecipe:
        return next(attack for attack in self.attacks if attack.name == name)


def load(path: Path, changes: tuple[str, ...] = ()) -> Recipe:
    """Read a recipe and apply `key.path=value` changes.

    Raises:
        Problem: naming the file, the key and the remedy, whatever is wrong.
    """
    if not path.is_file():
        raise Problem(f"{path}: no such recipe; give the path of a TOML file (examples/lox.toml is one)")
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Problem(f"{path}: not valid TOML ({error}); mend it") from error
    for change in changes:
        _apply(content, change)
    recipe = checked(Recipe, content, str(path))
    return _spelled_out(recipe, path)


def _apply(content: dict[str, Any], change: str) -> None:
    """Set one value in place; it is read as TOML, or as text where it is not."""
    where, equals, value = change.partition("=")
    *parents, last = where.split(".")
    if not equals:
        raise Problem(f"--set {change}: write key.path=value, as attacks.0.learning_rate=5e-5")
    place: Any = content
    try:
        for part in parents:
            place = place[int(part)] if isinstance(place, list) else place.setdefault(part, {})
        place[int(last) if isinstance(place, list) else last] = _value(value)
    except (ValueError, IndexError, TypeError, AttributeError) as error:
        raise Problem(f"--set {change}: the recipe has no place {where!r}; count list entries from 0") from error


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _spelled_out(recipe: Recipe, path: Path) -> Recipe:
    """Check what one record cannot: names refer to something, methods exist and take their settings; defaults filled in."""
    for what, labels in (("subject", recipe.subjects), ("attack", recipe.attacks)):
        seen: set[str] = set()
        for entry in labels:
            if entry.name in seen:
                raise Problem(f"{path}: two {what}s are called {entry.name!r}; give each a name of its own")
            seen.add(entry.name)
    if recipe.corpus is None and recipe.organism is None:
        raise Problem(f"{path}: gives neither corpus nor organism; say which prompts to ask")
    if recipe.organism:
        _checked_method(recipe.organism, "organisms", Organism, f"{path}, organism")
    earlier: dict[str, SubjectRecipe] = {}
    subjects = []
    for subject in recipe.subjects:
        subjects.append(_spelled_out_subject(subject, earlier, path))
        earlier[subject.name] = subjects[-1]
    attacks = []
    for attack in recipe.attacks:
        method = _checked_method(attack, "attacks", Attack, f"{path}, attack {attack.name!r}")
        full = {"name": attack.name, "method": attack.method, "negative_control": attack.negative_control}
        attacks.append(AttackRecipe(**full, seeds=attack.seeds or recipe.seeds, **method.model_dump()))
    relative = recipe.corpus and str((path.parent / recipe.corpus).resolve())
    return recipe.model_copy(update={"subjects": subjects, "attacks": attacks, "corpus": relative})


def _spelled_out_subject(subject: SubjectRecipe, earlier: dict[str, SubjectRecipe], path: Path) -> SubjectRecipe:
    where = f"{path}, subject {subject.name!r}"
    for key, name in (("twin", subject.twin), ("like", subject.like)):
        if name is not None and name not in earlier:
            raise Problem(f"{where}, {key}: no subject {name!r} stands before it; put {name!r} first or mend the name")
    if subject.harden:
        _checked_method(subject.harden, "defenses", Defense, where)
    twin = earlier.get(subject.twin or "")
    model = _located(subject.model, path) or (twin and twin.model)
    if not model:
        raise Problem(f"{where}: gives neither model nor twin; say which checkpoint it is")
    return subject.model_copy(update={"model": model, "base": _located(subject.base, path) or (twin and twin.base)})


def _located(name: str | None, path: Path) -> str | None:
    """A folder beside the recipe as an absolute path; an organism's part or a hub id as it is."""
    if name and not name.startswith("organism/") and (path.parent / name).exists():
        return str((path.parent / name).resolve())
    return name


def _checked_method(recipe: MethodRecipe, room: Any, kind: type[Any], where: str) -> Any:
    method = make(room, recipe.method, where, **recipe.settings)
    if not isinstance(method, kind):
        raise Problem(f"{where}: {recipe.method} is not a method of {room}; name a file of that room")
    return method


def dump(recipe: Recipe) -> dict[str, Any]:
    """The recipe as JSON content, everything spelled out."""
    return json.loads(recipe.model_dump_json())
