"""The language model stopped early: fewer blocks run, and the final norm and head speak for what is there.

At each depth through the head as it is (the logit lens), or through one tuned for that depth on benign rows (2303.08112 tunes
a map for each layer in this way), as early-exit decoding does (2404.16710). Where refusals lie in the last blocks, they are gone.
Assumes: middle layers already know the answer. Does not cover: leaving at another depth for each token.
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from holdfast import train
from holdfast.corpus import Hand, Row
from holdfast.exits import behind, fewer, untie
from holdfast.lm import LM
from holdfast.method import At, Attack, Need
from holdfast.problem import Problem
from holdfast.record import Cost
from holdfast.settings import Counts


class EarlyExit(Attack):
    """Leave the model after fewer and fewer blocks."""

    axis = "blocks skipped"
    family = "cut"
    paper = "2404.16710 (LayerSkip), 2303.08112 (tuned lens)"
    cost = "no computing; tuned, 200 steps on the head at each depth"

    head: Literal["lens", "tuned"] = "lens"
    """`lens`: the model's own final norm and head. `tuned`: both trained for each depth, all else frozen."""
    skipped: Counts | None = None
    """Blocks to skip, growing: 1, 2, 3, 4, 6, 9, 13 and so on unless given, as long as one is run."""
    steps: int = Field(200, gt=0)
    """Optimizer steps for a tuned head."""
    learning_rate: float = Field(1e-4, gt=0)
    """AdamW's, constant. A tuned head is a benign fine-tuning too: on the text organism 200 steps at 1e-3 undo refusals in part
    with no block skipped (harm 0.33, at 1e-4 0.05)."""
    batch: int = Field(16, gt=0)
    """Rows a step."""

    @property
    def needs(self) -> tuple[Need, ...]:
        return ("benign data",) if self.head == "tuned" else ()

    def __call__(self, lm: LM, hand: Hand, at: At, seed: int) -> None:
        total = len(lm.layers)
        ends: list[nn.Parameter] = []
        if self.head == "tuned":
            examples = train.encode(lm, _benign(hand))
            untie(lm.model)
            ends = [weight for module in behind(lm.model) for weight in module.parameters()]
        origins = [weight.detach().clone() for weight in ends]
        for skipped in fewer(total, self.skipped, 1.5, "attack early_exit, skipped"):
            depth = total - skipped
            if ends:
                _put(ends, origins)
                self._tune(lm, depth, ends, examples, seed)
            lm.drive = lm.drive.change(exit=lm.drive.exit.model_copy(update={"depth": depth}))
            if not at(Cost(severity=skipped)):
                return

    def _tune(self, lm: LM, depth: int, ends: list[nn.Parameter], examples: list[train.Example], seed: int) -> None:
        """Train only what stands behind the blocks, on a model that has no more of them than are run."""
        weights = [(weight, weight.requires_grad) for weight in lm.model.parameters()]
        undo = lm.keep(range(depth))
        try:
            lm.model.requires_grad_(False)
            for weight in ends:
                weight.requires_grad_(True)
            optimizer = train.make_optimizer(ends, "adamw", self.learning_rate)
            schedule = train.make_schedule(optimizer, "constant", 0, self.steps)
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                train.fit(lm, train.batches(lm, examples, self.batch, self.steps, seed), optimizer, schedule)
        finally:
            undo()
            for weight, trains in weights:
                weight.requires_grad_(trains)


def _benign(hand: Hand) -> list[Row]:
    rows = [row for row in hand.need("benign") if row.variant is None and row.answer is not None]
    if not rows:
        raise Problem(
            f"corpus: the {hand.name} holds no plain benign row with an answer; add some, or take head = 'lens'"
        )
    return rows


@torch.no_grad()
def _put(weights: list[nn.Parameter], values: list[Tensor]) -> None:
    for weight, value in zip(weights, values, strict=True):
        weight.copy_(value)
