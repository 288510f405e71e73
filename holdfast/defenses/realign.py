"""Simply more alignment: fine-tune on the aligned model's own refusals and own benign answers for some steps longer.

The control that any cleverer defense must beat: whatever it gains, plain training for as long might have gained too.
Needs no labels: the refusals it teaches are those the model gives already (self-distillation).
Assumes: a model that refuses some of the defender's prompts. Does not protect against harmful fine-tuning.
"""

import torch
from pydantic import Field
from transformers import set_seed

from holdfast import selftaught, train
from holdfast.corpus import Hand, Row
from holdfast.lm import LM
from holdfast.method import Defense, Log
from holdfast.problem import Problem


class Realign(Defense):
    """Go on aligning with what the model itself says."""

    steps: int = Field(100, gt=0)
    """Optimizer steps."""
    batch: int = Field(64, gt=0)
    """Rows a step."""
    learning_rate: float = Field(3e-4, gt=0)
    """Of AdamW, falling as a cosine."""
    seed: int = 0
    """Of the rows' order."""

    def __call__(self, lm: LM, hand: Hand | None, log: Log) -> None:
        if hand is None:
            raise Problem("realign: needs the defender's prompts; give --corpus")
        set_seed(self.seed)
        rows = self._own_answers(lm, hand)
        optimizer = train.make_optimizer(lm.model.parameters(), "adamw", self.learning_rate)
        schedule = train.make_schedule(optimizer, "cosine", 0, self.steps)
        work = train.batches(lm, train.encode(lm, rows), self.batch, self.steps, self.seed)
        loss = train.fit(lm, work, optimizer, schedule)
        if not lm.finite() or not torch.isfinite(torch.tensor(loss)):
            raise Problem("realign: training became unstable (weights not finite); lower learning_rate")
        log.metrics(rows=len(rows), loss=loss)

    def _own_answers(self, lm: LM, hand: Hand) -> list[Row]:
        """Restricted prompts with the refusals that the model gives, other prompts with the answers that it gives."""
        asked = hand.need("restricted", split="train") + hand.of("benign", "borderline", split="train")
        own = selftaught.said(lm, asked)
        refusals = [row for row in own.refused if row.kind == "restricted"]
        if not refusals:
            raise Problem("realign: the model refuses none of the defender's restricted prompts; align it first")
        return refusals + [row for row in own.answered if row.kind != "restricted"]
