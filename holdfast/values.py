"""Methods as values, written as a recipe writes them, so that a run says what it was made of and can be made again."""

import inspect
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from holdfast.method import KINDS, Attack, Method, Room, find
from holdfast.problem import Problem

Attacks = Sequence[Attack | str] | Mapping[str, Attack | str]
"""Attacks, or the names of some with their defaults; by the names that the run gives them, or named by their methods."""


def named(value: Method | str, room: Room) -> tuple[str, dict[str, Any]]:
    """How a recipe names the method of a value, and its settings; a name, or the path of a file, has its defaults.

    Raises:
        Problem: its class lies where no other process can find it.
    """
    if isinstance(value, str):
        return value, {}
    if not isinstance(value, KINDS[room]):
        given = value.__name__ if inspect.isclass(value) else type(value).__name__
        made = f"; make one of it, as {given}()" if inspect.isclass(value) else ""
        raise Problem(f"{given}: no {KINDS[room].__name__}, where one is asked for{made}")
    return _place(type(value), room), value.model_dump(mode="json")


def stem(name: str) -> str:
    """What a method is called in lines and labels."""
    return Path(name).stem if name.endswith(".py") else name


def entries(attacks: Attacks, **more: Any) -> Iterator[dict[str, Any]]:
    """The entries of a recipe's attacks; `more` stands in each."""
    pairs = list(attacks.items()) if isinstance(attacks, Mapping) else [(None, one) for one in attacks]
    for own, value in pairs:
        name, settings = named(value, "attacks")
        yield {"name": own or _label(stem(name)), "method": name} | settings | more


def distinct(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Entries of which later ones get a number where an earlier one has the name."""
    taken: dict[str, int] = {}
    made = []
    for entry in found:
        count = taken[entry["name"]] = taken.get(entry["name"], 0) + 1
        made.append(entry if count == 1 else entry | {"name": f"{entry['name']}-{count}"})
    return made


def _place(kind: type[Method], room: Room) -> str:
    """The name or the file by which every process finds the class."""
    module = kind.__module__
    if re.fullmatch(rf"holdfast\.{room}\.[a-z0-9_]+", module):
        return module.rpartition(".")[2]
    own = kind.__name__
    file = getattr(sys.modules.get(module), "__file__", None)
    if module == "__main__":
        where = f"the script {Path(file).name}" if file else "a notebook or at a prompt"
        how = "" if file else f" (a cell that begins with %%writefile {own.lower()}.py does that)"
        raise Problem(
            f"{own}: defined in {where}, where the processes that run an audit cannot find it; write it to a file of its "
            f"own, {own.lower()}.py{how}, and import it from there"
        )
    if file is None or not file.endswith(".py"):
        raise Problem(f"{own}: its module {module} is no .py file that other processes can read; put it into one")
    found = find(room, file)
    if found.__qualname__ != kind.__qualname__:
        raise Problem(
            f"{own}: {file} defines {found.__qualname__} in its place; put each method into a file of its own"
        )
    return str(Path(file).resolve())


def _label(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:60]
