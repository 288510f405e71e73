"""Run a published result again."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import FlagCreatePairsOff, Positional, UseAppendAction

from holdfast import beside, paper, reproducing, reproduction, shell, speech
from holdfast.footprint import Card
from holdfast.paper import Scale
from holdfast.quiet import quiet


@dataclass(frozen=True)
class Reproduce:
    """Run a paper's result again: on an organism, here, or with the paper's own models and data.

    Prints the published table beside ours, which is another model's, and what became of the claims of shape that were written
    down before. Writes runs/reproduce-PAPER-SCALE/reproduction.json, and below audit/ the ordinary run with its page.
    """

    paper: Positional[Literal["lox", "tar", "mlac", "icet"]]
    """Which one."""
    scale: Scale = "organism"
    """organism: minutes, on any machine. paper: the models and files that the plan names, days of a large GPU."""
    plan: Annotated[FlagCreatePairsOff[bool], speech.Unset] = False
    """Run and fetch nothing: tell what is claimed, what it takes, and what differs from the paper."""
    out: Annotated[Path | None, speech.Unset] = None
    """Folder; runs/reproduce-PAPER-SCALE unless given. What is unfinished there goes on where it was."""
    set: Annotated[tuple[str, ...], UseAppendAction] = ()
    """Change one value of the scale, as models.base=FOLDER, data.gsm8k=FOLDER or recipe.attacks.0.steps=60; may be given
    several times."""
    processes: Annotated[int | None, speech.Unset] = None
    """Hardenings, and then cells, at a time; one a core (with a GPU, one) unless given."""
    card: Card = "h200"
    """The kind of GPU that the plan reckons with."""


def main(words: list[str]) -> int:
    quiet()
    options = speech.parse(Reproduce, "reproduce", words)
    chosen = paper.load(options.paper, options.scale, tuple(options.set))
    for line in reproducing.planned(chosen, options.scale, options.card):
        speech.say(line)
    if options.plan:
        return 0
    out = options.out or Path("runs") / f"reproduce-{options.paper}-{options.scale}"
    how = options.scale, out, speech.console, shell.some(options.processes)
    found = reproducing.run(options.paper, chosen, *how)
    audited = reproducing.audited(out)
    code = shell.told(audited) if audited else 0
    speech.console.print(beside.table(found))
    for line in (*reproduction.lines(found), f"reproduction: {out / reproducing.RESULT}"):
        speech.say(line)
    return code
