"""How a command speaks with whoever calls it: words in, lines out. Knows no torch, so a command that only looks answers soon."""

from typing import Any

import tyro
from pydantic import ValidationError
from rich.console import Console
from tyro.conf import DisallowNone

from holdfast.problem import Problem, printable

console = Console(highlight=False)
Unset = tyro.conf.arg(help_behavior_hint="")
"""Marks an option whose help says what holds where it is not given."""


def say(line: str) -> None:
    """A line as it is: paths and others' words may hold what looks like markup."""
    console.print(printable(line), markup=False, soft_wrap=True)


def parse(kind: Any, name: str, words: list[str], description: str | None = None) -> Any:
    try:
        return tyro.cli(kind, prog=f"holdfast {name}", args=words, description=description, config=(DisallowNone,))
    except ValidationError as error:
        first = error.errors()[0]
        raise Problem(f"{name}, {'.'.join(map(str, first['loc'])) or 'settings'}: {first['msg']}") from error
