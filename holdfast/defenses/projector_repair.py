"""The projector fitted anew: what it makes of an early layer's features is drawn to what it makes of the released layer's.

No answer is trained. If refusals come back, early features were only foreign to the language model, and a change of a few
weights is enough (the explanation that 2411.04291 leaves open). One projector serves all the exits that are named; what it makes
of the released layer is among what it learns.
Assumes: pictures of the defender's, and a projector that stands apart from the encoder. Does not protect against fine-tuning, nor
where an exit's features no longer hold what the projector would have to say.
"""

import random

from pydantic import Field

from holdfast import train, vision
from holdfast.corpus import Hand
from holdfast.ladder import copied
from holdfast.leavers import Leaving
from holdfast.lm import LM
from holdfast.method import Defense, Log
from holdfast.problem import Problem


class ProjectorRepair(Leaving, Defense):
    """Make early features look like the released layer's to the language model."""

    steps: int = Field(600, gt=0)
    """Optimizer steps."""
    batch: int = Field(32, gt=0)
    """Pictures a step, each at an exit of its own."""
    learning_rate: float = Field(1e-3, gt=0)
    """Of AdamW, at its highest."""

    def __call__(self, lm: LM, hand: Hand | None, log: Log) -> None:
        ladder = self.ladder(lm)
        rows = self._hand(hand).of(split="train")
        images = list(dict.fromkeys(row.image for row in rows if row.image))
        if not ladder.sees or not images:
            raise Problem(f"{self.name}: the model sees no picture, or the defender has none; take exit_sft")
        weights = vision.Weights.of(lm.model)
        if not weights.projector:
            raise Problem(f"{self.name}: {type(lm.model).__name__} has its projector inside its encoder; take exit_sft")
        for row in rows:
            lm.encode(row.asked)  # the eyes take a picture in with its prompt
        teacher = copied(lm, weights.encoder + weights.language)
        with self.hardening(lm, log, frozen=weights.encoder + weights.language) as walk:
            order = train.order(len(images), self.batch, self.steps, self.seed)
            for number in walk.steps():
                some, chance = [images[one] for one in order[number]], random.Random(f"{self.seed} {number}")
                exits = ladder.draw(chance, len(some), self.released)
                wanted = teacher.eyes.features(teacher.model, some, lm.drive, [ladder.released] * len(some)).detach()
                loss = ((lm.eyes.features(lm.model, some, lm.drive, exits) - wanted) ** 2).mean() / wanted.var()
                loss.backward()
                walk.step(unlike=loss.detach())
