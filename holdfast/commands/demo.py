"""Build a small model, harden it, attack it and its twins, write the page."""

import importlib.resources
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from holdfast import auditing, recipe, shell, speech
from holdfast.quiet import quiet


@dataclass(frozen=True)
class Demo:
    """Build the text organism, harden it with LoX and two controls, attack all four, write the page."""

    out: Path = Path("runs/demo")
    """Folder of the run."""
    processes: Annotated[int | None, speech.Unset] = None
    """Cells at a time; one a core (with a GPU, one) unless given."""


def main(words: list[str]) -> int:
    quiet()
    options = speech.parse(Demo, "demo", words)
    with importlib.resources.as_file(importlib.resources.files("holdfast") / "demo.toml") as path:
        run = auditing.run(recipe.load(path), options.out, speech.console, shell.some(options.processes))
    return shell.told(run)
