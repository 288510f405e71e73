"""The source's distribution over every word of its refusals, learned again by the model that was cut from it.

    minimize  KL(source ‖ cut) on refusals of restricted prompts  +  kept · KL(teacher ‖ cut) on answers to the others

The teacher of the others is the cut model as it was, whose utility is to stay, or the source. Zero weights stay zero; what was
rounded is trained straight through its rounding, starting from the source's own weights as far as these round to the same. A
share of the rows may leave the cut model at an earlier exit drawn by chance, so that the repair holds where somebody cuts on.
Distillation after a cut, for utility: 2407.14679.
Assumes: a source that refuses, and prompts like those that will be asked. Does not protect against fine-tuning.
"""

import random
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from holdfast import losses, selftaught, train
from holdfast.corpus import Hand, Row
from holdfast.ladder import Ladder, copied
from holdfast.lm import LM
from holdfast.method import Defense, Log
from holdfast.repairing import Repairing
from holdfast.settings import Counts


class RepairDistill(Repairing, Defense):
    """Learn the source's refusals word by word, in the cut's form."""

    steps: int = Field(200, gt=0)
    """Optimizer steps."""
    kept: float = Field(1.0, ge=0)
    """Weight of the loss on other prompts' answers."""
    teacher: Literal["cut", "source"] = "cut"
    """Who teaches the answers to other prompts: the cut model as it was, or the source, which may refuse some of them."""
    exits: Counts | None = None
    """Exits that are drawn by chance: layers of the image encoder where the model sees pictures, else depths of the language
    model. Those from the middle on unless given."""
    early: float = Field(0.0, ge=0, le=1)
    """Share of the rows, or of a text model's steps, that leave at one of these."""

    def __call__(self, lm: LM, hand: Hand | None, log: Log) -> None:
        source, form = self.origin(lm)
        ladder = Ladder.of(lm, self.exits, f"{self.name}, exits")
        if not self.exits:
            ladder = Ladder.of(lm, range(max(1, ladder.released // 2), ladder.released + 1), f"{self.name}, exits")
        refused, answered = self.sides(source, hand)
        before = source
        if self.teacher == "cut":
            before = copied(lm, [])
            answered = selftaught.said(before, answered).answered
        orders = [train.order(len(rows), self.batch, self.steps, self.seed) for rows in (refused, answered)]
        with self.mending(lm, form, log, frozen=ladder.apart(lm)) as walk:
            for number in walk.steps():
                chance = random.Random(f"{self.seed} {number}")
                ours, theirs = (
                    [rows[i] for i in order[number]] for rows, order in zip((refused, answered), orders, strict=True)
                )
                exits = ladder.draw(chance, len(ours) + len(theirs), 1 - self.early)
                refusal = _apart(lm, source, ours, ladder, exits[: len(ours)])
                kept = _apart(lm, before, theirs, ladder, exits[len(ours) :])
                (refusal + self.kept * kept).backward()
                walk.step(refusal=refusal.detach(), kept=kept.detach())


def _apart(lm: LM, teacher: LM, rows: Sequence[Row], ladder: Ladder, exits: Sequence[int]) -> Tensor:
    """KL (nats) between the teacher where it is released and the model at these exits, mean over the answers' tokens."""
    ours, known = (train.collate(one, train.encode(one, rows)) for one in (lm, teacher))
    with torch.no_grad():
        wanted = train.predictions(teacher.model, known)
    with ladder.left(lm, [row.image for row in rows], exits):
        return losses.divergence(train.predictions(lm.model, ours), wanted).mean()
