"""What a search may choose: the settings of one attack, their ranges, what stays fixed, and known-best settings to begin with.

A space is a TOML file: a shipped one of `spaces/`, named as its attack, or one of the user's own. Knows no model and no sampler.
"""

import importlib.resources
import json
import math
import os
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from holdfast import tier
from holdfast.changes import change
from holdfast.corpus import Hand
from holdfast.method import Attack, find, make
from holdfast.problem import Problem, meant
from holdfast.settings import Settings, checked

Values = dict[str, Any]
"""A setting's name -> the value chosen for it."""
APART = 0.1
"""Two settings are told apart by another choice, or by so much of a range."""
EDGE = 0.05
"""The best lies at an edge within so much of a range's end."""


class Dimension(Settings):
    """One setting that is searched: a range, or a list of choices."""

    low: int | float | None = None
    high: int | float | None = None
    """A range with both ends; of whole numbers where both ends are."""
    log: bool = False
    """Every decade is as likely."""
    choices: list[Any] | None = Field(None, min_length=1)
    when: Values = Field({})
    """Only searched where other settings have these values (of a list: one of these)."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if self.choices is not None:
            if (self.low, self.high, self.log) != (None, None, False):
                raise ValueError("give either choices or low and high")
            if len(set(map(json.dumps, self.choices))) < len(self.choices):
                raise ValueError("a choice is given twice")
        elif self.low is None or self.high is None or not self.low < self.high:
            raise ValueError("needs choices, or low and a larger high")
        elif self.log and self.low <= 0:
            raise ValueError("low must be above 0 where log is set")
        return self

    @property
    def whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    def asked(self, chosen: Values) -> bool:
        """Whether this is searched where the other settings are so."""
        return all(chosen.get(name) in (some if isinstance(some, list) else [some]) for name, some in self.when.items())

    def holds(self, value: Any) -> bool:
        if self.choices is not None:
            return value in self.choices
        assert self.low is not None and self.high is not None
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and self.low <= value <= self.high and not (self.whole and isinstance(value, float))

    def place(self, value: Any) -> float:
        """Where in [0, 1] a value of the range lies; of choices the middle of its share."""
        if self.choices is not None:
            return (self.choices.index(value) + 0.5) / len(self.choices)
        assert self.low is not None and self.high is not None
        low, high, here = (math.log(one) if self.log else one for one in (self.low, self.high, value))
        return min(1.0, max(0.0, (here - low) / (high - low)))


class Space(Settings):
    """The settings of one attack that a search may choose, and what is fixed."""

    method: str
    """The attack."""
    settings: Values = Field({})
    """What stays fixed; a setting named here is not searched."""
    space: dict[str, Dimension] = Field(min_length=1)
    """What is searched, by setting."""
    known: list[Values] = Field([])
    """Settings that were best elsewhere; the search begins with them."""
    audit: Values = Field({})
    """Entries of the recipe by which the search and its confirmation judge, as `utility_floor` or `seeds`."""

    def suggested(self, choose: Any) -> Values:
        """A value for each setting in question; `choose(name, dimension)` gives one."""
        chosen: Values = {}
        for name, dimension in self.space.items():
            if dimension.asked(self.settings | chosen):
                chosen[name] = choose(name, dimension)
        return chosen

    def starts(self) -> Iterator[Values]:
        """The known settings that lie in the space; what they leave open is the attack's default, or the first choice."""
        defaults = make("attacks", self.method, "space", **self.settings).model_dump(mode="json")
        for one in self.known:

            def known(name: str, dimension: Dimension, one: Values = one) -> Any:
                value = one.get(name, defaults[name])
                return (
                    dimension.choices[0]
                    if dimension.choices and name not in one and not dimension.holds(value)
                    else value
                )

            chosen = self.suggested(known)
            fits = all(self.space[name].holds(value) for name, value in chosen.items())
            if fits and all((self.settings | chosen).get(name) == value for name, value in one.items()):
                yield chosen

    def build(self, chosen: Values) -> Attack:
        """The attack with the settings chosen. Raises `Problem` where they do not go together."""
        attack: Attack = make("attacks", self.method, f"space of {self.method}", **self.settings, **chosen)
        return attack

    def apart(self, one: Values, other: Values) -> bool:
        """Whether two choices are different settings, not the same one twice."""
        if one.keys() != other.keys():
            return True
        gaps = [(self.space[name], one[name], other[name]) for name in one]
        return any(a != b if d.choices else abs(d.place(a) - d.place(b)) >= APART for d, a, b in gaps)

    def edges(self, chosen: Values) -> list[str]:
        """The ranges at whose end the choice lies."""
        ranges = {name: self.space[name].place(value) for name, value in chosen.items() if not self.space[name].choices}
        return [
            f"{name} at its {'low' if place < 0.5 else 'high'} end"
            for name, place in ranges.items()
            if min(place, 1 - place) <= EDGE
        ]


def load(attack: str, width: int, base: bool, hand: Hand, changes: tuple[str, ...] = ()) -> tuple[Space, list[str]]:
    """A space with `key.path=value` changes, narrowed to what the adversary has, and what was left out and why.

    Args:
        attack: name of an attack that a space is shipped for, or the path of a TOML file.
        width: of the model; rates by width are divided by it.
        base: whether the checkpoint before the alignment is at hand.
        hand: the attacker's.

    Raises:
        Problem: there is no such space, something in it is wrong, or nothing of it can be run.
    """
    content, where = _read(attack)
    content = tier.with_rates(content, width)
    for one in changes:
        change(content, one)
    space = checked(Space, content, where)
    if space.method.endswith(".py"):
        space = space.model_copy(update={"method": os.path.realpath(Path(where).parent / space.method)})
    space = space.model_copy(
        update={"space": {name: one for name, one in space.space.items() if name not in space.settings}}
    )
    _refuse_unknown(space, where)
    return _possible(space, base, hand, where)


def shipped() -> list[str]:
    """The attacks that a space is shipped for."""
    folder = importlib.resources.files("holdfast") / "spaces"
    return sorted(path.name.removesuffix(".toml") for path in folder.iterdir() if path.name.endswith(".toml"))


def _read(attack: str) -> tuple[dict[str, Any], str]:
    if attack.endswith(".toml"):
        if not os.path.isfile(attack):
            raise Problem(f"{attack}: no such file; give the path of a TOML file that holds a space")
        text, where = Path(attack).read_text(encoding="utf-8"), attack
    elif attack in shipped():
        text = (importlib.resources.files("holdfast") / "spaces" / f"{attack}.toml").read_text(encoding="utf-8")
        where = f"space {attack}"
    else:
        hint = f"{meant(attack, shipped())}; or write a space of your own in a TOML file and name it"
        raise Problem(f"--attack {attack}: no space is shipped for it; {hint}")
    try:
        return tomllib.loads(text), where
    except (ValueError, RecursionError) as error:
        raise Problem(f"{where}: not valid TOML ({error}); mend it") from error


def _refuse_unknown(space: Space, where: str) -> None:
    fields = find("attacks", space.method).model_fields
    tables = {"settings": space.settings, "space": space.space} | {
        f"known.{number}": known for number, known in enumerate(space.known)
    }
    for table, names in tables.items():
        if unknown := [name for name in names if name not in fields]:
            raise Problem(
                f"{where}, {table}: {space.method} has no setting {unknown[0]!r}; {meant(unknown[0], fields)}"
            )
    for number, (name, dimension) in enumerate(space.space.items()):
        before = {*space.settings, *list(space.space)[:number]}
        if late := [other for other in dimension.when if other not in before]:
            why = "is neither fixed nor searched before it"
            raise Problem(f"{where}, space.{name}, when: {late[0]!r} {why}; move it up or mend the name")
    if not space.space:
        raise Problem(f"{where}: every setting is fixed; leave at least one to be searched")


def _possible(space: Space, base: bool, hand: Hand, where: str) -> tuple[Space, list[str]]:
    """The space without choices that need what the adversary lacks."""
    left_out: list[str] = []
    for name, dimension in space.space.items():
        choices = dimension.choices or []
        needs = [set(tier.lacking(space.build(_with(space, name, choice)), base, hand)) for choice in choices]
        common = set.intersection(*needs) if needs else set()  # what is lacking whatever is chosen here
        some = [choice for choice, lacking in zip(choices, needs, strict=True) if lacking == common]
        told = [(choice, sorted(lacking - common)) for choice, lacking in zip(choices, needs, strict=True)]
        left_out += [f"{name} = {choice!r} needs {' and '.join(lacking)}" for choice, lacking in told if lacking]
        if choices and not some:
            raise Problem(f"{where}: {'; '.join(left_out)}; add it to the corpus, or search another attack")
        if choices:
            narrowed = space.space | {name: dimension.model_copy(update={"choices": some})}
            space = space.model_copy(update={"space": narrowed})
    if lacking := tier.lacking(space.build(space.suggested(_first)), base, hand):
        raise Problem(f"{where}: {space.method} needs {' and '.join(lacking)}; search another attack")
    return space, left_out


def _first(_: str, dimension: Dimension) -> Any:
    return dimension.choices[0] if dimension.choices else dimension.low


def _with(space: Space, name: str, choice: Any) -> Values:
    """Settings in which `name` is chosen so, what that hangs on as it must be, and all others their first."""

    def some(other: str, dimension: Dimension) -> Any:
        wanted = space.space[name].when.get(other)
        if other == name or wanted is None:
            return choice if other == name else _first(other, dimension)
        return wanted[0] if isinstance(wanted, list) else wanted

    return space.suggested(some)
