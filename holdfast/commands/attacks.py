"""List what an adversary may do."""

import json
from dataclasses import dataclass
from typing import Annotated

import tyro
from tyro.conf import FlagCreatePairsOff, Positional

from holdfast import catalogue, speech
from holdfast import method as methods
from holdfast.record import FAMILIES


@dataclass(frozen=True)
class Attacks:
    """List the attacks, or explain those that are named."""

    names: Annotated[Positional[tuple[str, ...]], tyro.conf.arg(metavar="[NAME ...]", help_behavior_hint="")] = ()
    """Attacks to explain; a file of your own as ./mine.py."""
    json: Annotated[FlagCreatePairsOff[bool], speech.Unset] = False
    """As JSON."""


def main(words: list[str]) -> int:
    options = speech.parse(Attacks, "attacks", words)
    if options.names and not options.json:
        for name in options.names:
            speech.console.print(catalogue.explained(name))
        return 0
    entries = [catalogue.entry(name) for name in options.names or methods.names("attacks")]
    if options.json:
        print(json.dumps([one.model_dump(mode="json") for one in entries], indent=1))
    else:
        ordered = sorted(entries, key=lambda one: [*FAMILIES].index(one.family))
        speech.console.print(catalogue.listing(ordered, speech.console.width))
    return 0
