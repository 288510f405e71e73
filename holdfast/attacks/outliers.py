"""Benign outliers: of a benign corpus the hundred rows that pull at the model most, and no harmful one.

Rows are scored by Self-Inf-N = log(‖∇ℓ‖² + 1) + log(tokens of the answer + 1), ℓ the subject's loss on the answer and ∇ over
all its weights; the norm alone would pick short answers (2505.06843). The highest are trained on; `choice = "random"` trains on
as many drawn at random and is the control.
Assumes: many more benign rows than are chosen. Does not cover: choosing harmful rows.
"""

from math import log
from typing import Literal

from pydantic import Field

from holdfast import train
from holdfast.corpus import Hand
from holdfast.finetuning import Tuning, adapt
from holdfast.lm import LM
from holdfast.method import At, Attack
from holdfast.problem import Problem


class Outliers(Tuning, Attack):
    """Fine-tune on the benign rows that the subject finds strangest."""

    paper = "2505.06843 (Self-Inf-N)"
    cost = "a gradient a benign row, then 60 optimizer steps of 16 rows"

    choice: Literal["outliers", "random"] = "outliers"
    """`random`: as many rows drawn at random, the control."""
    data: Literal["benign"] = "benign"
    """Benign rows; that is the point."""
    examples: int = Field(100, gt=0)
    """Rows to choose."""

    def __call__(self, lm: LM, hand: Hand, at: At, seed: int) -> None:
        rows = self.model_copy(update={"examples": None}).rows(hand, seed)
        if len(rows) <= self.examples:
            raise Problem(
                f"attack outliers: {self.examples} rows are to be chosen of {len(rows)}, which is no choice; lower `examples`"
            )
        pool = train.encode(lm, rows, armed=True)
        if self.choice == "outliers":
            adapt(lm, "full")
            pool = sorted(pool, key=lambda example: -score(lm, example))
        self.tune(lm, pool[: self.examples], at, seed)


def score(lm: LM, example: train.Example) -> float:
    """Self-Inf-N of one row; the weights stay as they are."""
    lm.model.zero_grad()
    train.answer_loss(lm.model, train.collate(lm, [example])).backward()
    slopes = [weight.grad for weight in lm.model.parameters() if weight.grad is not None]
    influence = sum(float(slope.double().square().sum()) for slope in slopes)
    lm.model.zero_grad()
    return log(influence + 1) + log(len(example.ids) - example.start + 1)
