"""Make an ordinary checkpoint of what ships in another form."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional

from holdfast import opening, packed, speech
from holdfast.problem import Problem
from holdfast.quiet import quiet


@dataclass(frozen=True)
class Unpack:
    """Write a GGUF file, a quantized checkpoint or a LoRA adapter with its base as an ordinary checkpoint of the same numbers.

    That is what an adversary does first: on the folder made every attack and every cut can be tried.
    """

    artifact: Annotated[Positional[str], tyro.conf.arg(metavar="ARTIFACT")]
    """A GGUF file, or the folder or hub id of a quantized checkpoint or of an adapter."""
    out: Path
    """Folder for the checkpoint."""


def main(words: list[str]) -> int:
    quiet()
    options = speech.parse(Unpack, "unpack", words)
    place = opening.located(options.artifact)
    if isinstance(place, str):
        raise Problem(f"{place}: is an address, which hands out no weights; give the file or folder that it serves")
    if place.suffix == ".gguf" and not place.is_file():
        raise Problem(f"{place}: no such file; give the path of a GGUF file")
    found = packed.unpack(place, options.out)
    speech.say(f"{place} is {found}; the same numbers as a checkpoint: {options.out}")
    return 0
