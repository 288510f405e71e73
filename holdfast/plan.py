"""`holdfast audit --plan`: how many cells, how long, and what the audit will be able to tell. Writes nothing.

One look at the judge's prompts and one training step are timed on a subject whose checkpoint is there; where none is, because
the recipe builds its organism first, no time is foretold.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from holdfast import policy
from holdfast.checks.prompts import NEEDED
from holdfast.foresight import foreseen
from holdfast.job import looks
from holdfast.lm import LM
from holdfast.recipe import ORGANISM, AttackRecipe, Recipe
from holdfast.record import cell_name
from holdfast.run import Run

TRIAL = 8
"""Prompts of the training step that is timed."""


def planned(recipe: Recipe, folder: Path, processes: int) -> Iterator[str]:
    """Lines to print: one an attack, then how long all take and what will show.

    Raises:
        Problem: a checkpoint or the corpus cannot be read.
    """
    done = {cell.name for cell in Run(folder).cells() if cell.status != "failed"}
    claims = sum(not attack.negative_control for attack in recipe.attacks)
    prompts, pace = _prompts(recipe), _pace(recipe)
    left, seconds, clocked = 0, 0.0, dict[int, None]()
    for attack in recipe.attacks:
        seeds = attack.seeds or recipe.seeds
        names = [cell_name(one.name, attack.name, seed) for one in recipe.subjects for seed in seeds]
        todo = sum(name not in done for name in names)
        left, seconds = left + todo, seconds + todo * (pace.of(attack) if pace else 0.0)
        if attack.negative_control:
            what = "a control"
        elif attack.build().axis == "steps":
            what = _counted(len(seeds), "seed")
            clocked[len(seeds)] = None
        else:
            what = "no clock, compared prompt by prompt"
        yield f"{attack.name}: {todo} of {_counted(len(names), 'cell')} to run; {what}"
    whole = (
        f"about {seconds / processes / 60:.0f} min" if pace else "nobody knows how long before the organism is built"
    )
    subjects = _counted(len(recipe.subjects), "subject")
    yield f"in all {_counted(left, 'cell')} to run on {subjects}, {processes} at a time: {whole}"
    if any(one.twin for one in recipe.subjects):
        yield from (_tells(seeds, prompts, claims) for seeds in clocked)
    else:
        yield "no undefended twin stands beside: this can tell whether the model breaks, and not whether a defense helps"
    if pace:
        yield f"timed: one look at the judge's prompts {pace.look:.2f} s, one training row {pace.row:.3f} s"


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _prompts(recipe: Recipe) -> int:
    """The judge's restricted prompts; what the checks need where the corpus is not there yet."""
    if not recipe.corpus:
        return NEEDED["restricted"]
    return len(policy.prompts(Path(recipe.corpus)).hand("judge").of("restricted", split="test"))


def _tells(seeds: int, prompts: int, attacks: int) -> str:
    """The smallest effects that so many seeds will show: if all attacks are withstood alike, and if one alone is."""
    alike, alone = foreseen(seeds, prompts), foreseen(seeds, prompts, attacks)
    if alike.ratio == float("inf"):
        return f"{_counted(seeds, 'seed')} of an attack with a clock cannot tell anything"
    return (
        f"{_counted(seeds, 'seed')} of an attack with a clock show, in 80 of 100 audits, a break {alike.ratio:.1f}x as late as "
        f"the twin's, or harm lower by {alike.difference:.2f} if the defense withstands all attacks alike; {alone.ratio:.1f}x or "
        f"{alone.difference:.2f} if it withstands one alone"
    )


class Pace(NamedTuple):
    """Seconds, measured here and now."""

    look: float
    """For the judge's prompts to be answered once."""
    row: float
    """For one row to be trained on."""

    def of(self, attack: AttackRecipe) -> float:
        """For a cell of this attack: looks, and training."""
        steps = int(attack.settings.get("steps", 0))
        return looks(attack) * self.look + steps * int(attack.settings.get("batch", 1)) * self.row


def _pace(recipe: Recipe) -> Pace | None:
    """Timed on the first subject whose checkpoint is there; None where the recipe builds all of them first."""
    there = [one.model for one in recipe.subjects if one.model and not one.model.startswith(ORGANISM)]
    if not there or not recipe.corpus:
        return None
    lm = LM.load(there[0], drive=recipe.drive)
    texts = [row.text for row in policy.prompts(Path(recipe.corpus)).hand("judge").of(split="test")]
    began = time.monotonic()
    lm.generate(texts)
    look = time.monotonic() - began
    tokens = lm.tokenizer(texts[:TRIAL], return_tensors="pt", padding=True).to(lm.device)
    began = time.monotonic()
    with torch.enable_grad():
        lm.model(input_ids=tokens["input_ids"], labels=tokens["input_ids"]).loss.backward()
    return Pace(look, (time.monotonic() - began) / min(TRIAL, len(texts)))
