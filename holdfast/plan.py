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
    """Lines to print: one an attack, then how long it takes. Raises `Problem` if a checkpoint or the corpus cannot be read."""
    done = {cell.name for cell in Run(folder).cells() if cell.status != "failed"}
    claims = sum(not attack.negative_control for attack in recipe.attacks)
    prompts, pace = _prompts(recipe), _pace(recipe)
    left, seconds = 0, 0.0
    for attack in recipe.attacks:
        seeds = attack.seeds or recipe.seeds
        names = [cell_name(one.name, attack.name, seed) for one in recipe.subjects for seed in seeds]
        todo = sum(name not in done for name in names)
        left, seconds = left + todo, seconds + todo * (pace.of(attack) if pace else 0.0)
        tells = "a control" if attack.negative_control else _tells(attack, len(seeds), prompts, claims)
        yield f"{attack.name}: {todo} of {len(names)} cells to run; {tells}"
    whole = (
        f"about {seconds / processes / 60:.0f} min" if pace else "nobody knows how long before the organism is built"
    )
    yield f"in all {left} cells to run on {len(recipe.subjects)} subjects, {processes} at a time: {whole}"
    if pace:
        yield f"timed: one look at the judge's prompts {pace.look:.2f} s, one training row {pace.row:.3f} s"


def _prompts(recipe: Recipe) -> int:
    """The judge's restricted prompts; what the checks need where the corpus is not there yet."""
    if not recipe.corpus:
        return NEEDED["restricted"]
    return len(policy.prompts(Path(recipe.corpus)).hand("judge").of("restricted", split="test"))


def _tells(attack: AttackRecipe, seeds: int, prompts: int, attacks: int) -> str:
    """The smallest effects that would show, if all attacks are withstood alike, and if this one alone is."""
    if attack.build().axis != "steps":
        return "no clock: compared prompt by prompt"
    alike, alone = foreseen(seeds, prompts), foreseen(seeds, prompts, attacks)
    if alike.ratio == float("inf"):
        return "one seed cannot tell anything"
    return (
        f"shows a break {alike.ratio:.1f}x later or harm lower by {alike.difference:.2f} in 80 of 100 audits if all attacks "
        f"are withstood alike, {alone.ratio:.1f}x or {alone.difference:.2f} if this one alone is"
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
