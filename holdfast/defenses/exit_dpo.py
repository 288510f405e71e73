"""Preferences at exits: where an early exit really answered a restricted prompt, its refusal is preferred to what was said there.

Direct preference optimization (2305.18290) on pairs that the model makes itself: chosen is what it says where it is released,
rejected is its own answer at that exit. Other prompts are learned beside them at exits drawn by chance, because preferences alone
say nothing of them. The reference is the model as it was, at the same exit.
Assumes: exits that answer restricted prompts of the defender's. Does not protect against fine-tuning.
"""

import random

import torch
from pydantic import Field

from holdfast import losses, train
from holdfast.corpus import Hand, Row
from holdfast.ladder import Ladder
from holdfast.leavers import Leavers, Leaving
from holdfast.lm import LM
from holdfast.method import Defense, Log
from holdfast.problem import Problem


class ExitDPO(Leaving, Defense):
    """Prefer the refusal to what an exit said."""

    steps: int = Field(150, gt=0)
    """Optimizer steps."""
    batch: int = Field(16, gt=0)
    """Pairs a step, and as many other rows."""
    learning_rate: float = Field(6e-5, gt=0)
    """Of AdamW, at its highest."""
    beta: float = Field(0.1, gt=0)
    """How hard the model is held to where it began."""
    kept: float = Field(1.0, ge=0)
    """Weight of the loss on other prompts' answers."""

    def __call__(self, lm: LM, hand: Hand | None, log: Log) -> None:
        ladder = self.ladder(lm)
        refused, answered = self.prompts(lm, hand)
        pairs = self.pairs(lm, refused, ladder)
        orders = [train.order(len(some), self.batch, self.steps, self.seed) for some in (pairs, answered)]
        reference = self.before(lm, ladder)
        with self.hardening(lm, log, frozen=ladder.apart(lm)) as walk:
            for number in walk.steps():
                ours, theirs = (order[number] for order in orders)
                chance = random.Random(f"{self.seed} {number}")
                chosen = [pairs[i] for i in (ours if ladder.sees else _alike(pairs, ours))]
                both = Leavers(
                    [pair[0] for pair in chosen] + [pair[1] for pair in chosen], [pair[2] for pair in chosen] * 2
                )
                others = Leavers([answered[i] for i in theirs], ladder.draw(chance, self.batch, self.released))
                with torch.no_grad(), reference() as referee:
                    before = _likelihood(referee, both, ladder)
                better, worse = (_likelihood(lm, both, ladder) - before).chunk(2)
                preference = losses.preference(better - worse, self.beta).mean()
                with ladder.left(lm, others.images, others.exits):
                    kept = train.answer_loss(lm.model, train.collate(lm, train.encode(lm, others.rows)))
                (preference + self.kept * kept).backward()
                walk.step(preference=preference.detach(), kept=kept.detach())

    def pairs(self, lm: LM, refused: list[Row], ladder: Ladder) -> list[tuple[Row, Row, int]]:
        """A prompt with its refusal, the same with what an exit said, and the exit.

        Raises:
            Problem: every exit refuses them all.
        """
        refusals = {row.id: row for row in refused}
        pairs = [(refusals[row.id], row, exit) for row, exit in self.slips(lm, refused, ladder)]
        if not pairs:
            raise Problem(f"{self.name}: every exit refuses the defender's restricted prompts; nothing is to be mended")
        return pairs


def _alike(pairs: list[tuple[Row, Row, int]], chosen: list[int]) -> list[int]:
    """As many pairs as chosen, all of the first one's exit: a depth holds for a whole batch."""
    same = [number for number, pair in enumerate(pairs) if pair[2] == pairs[chosen[0]][2]]
    return [same[number % len(same)] for number in chosen]


def _likelihood(lm: LM, leavers: Leavers, ladder: Ladder) -> torch.Tensor:
    """Of each row's answer at its exit, shape (rows,)."""
    batch = train.collate(lm, train.encode(lm, leavers.rows))
    with ladder.left(lm, leavers.images, leavers.exits):
        return train.likelihood(lm.model, batch)
