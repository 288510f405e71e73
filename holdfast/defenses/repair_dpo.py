"""A preference patch: the source's refusal before what the cut model said in its place, in the few weights that refusals hang on.

Direct preference optimization (2305.18290) on pairs that cost nobody a label: chosen is what the source says to a restricted
prompt, rejected is the cut model's own answer where it does not refuse. The chosen are learned beside that (2404.19733), because
a preference alone may make both unlikely, and so are the cut model's own answers to other prompts.
Only the weights move whose |weight · gradient| for the refusals is greatest in their matrix (SNIP's score, which found
safety-critical weights in 2402.05162), and none that the cut took; what was rounded moves by whole steps of its rounding.
Assumes: a cut that really lost refusals of the defender's prompts. Does not protect against fine-tuning.
"""

import random

import torch
from pydantic import Field
from torch import Tensor

from holdfast import losses, pruning, selftaught, train
from holdfast.corpus import Hand, Row
from holdfast.lm import LM
from holdfast.method import Defense, Log
from holdfast.problem import Problem
from holdfast.repairing import Repairing


class RepairDPO(Repairing, Defense):
    """Prefer the source's refusals, in a small share of the weights."""

    steps: int = Field(150, gt=0)
    """Optimizer steps."""
    batch: int = Field(16, gt=0)
    """Pairs a step, and as many other rows."""
    learning_rate: float = Field(1e-3, gt=0)
    """Of AdamW, at its highest."""
    share: float = Field(0.05, gt=0, le=1)
    """Of every matrix of the blocks, the weights that move."""
    scored: int = Field(64, gt=0)
    """Refusals, by chance, on which weights are scored."""
    beta: float = Field(0.1, gt=0)
    """How hard the model is held to where it began."""
    kept: float = Field(1.0, ge=0)
    """Weight of the loss on the chosen refusals, and on other prompts' answers."""

    def __call__(self, lm: LM, hand: Hand | None, log: Log) -> None:
        source, form = self.origin(lm)
        refused, answered = self.sides(source, hand)
        refusals = {row.id: row for row in refused}
        slips = selftaught.said(lm, refused).answered
        pairs = [(refusals[row.id], row) for row in slips]
        if not pairs:
            raise Problem(f"{self.name}: the cut model refuses whatever its source does; nothing is to be mended")
        answered = selftaught.said(lm, answered).answered
        touched = self._touched(lm, refused)
        before = [_likelihoods(lm, [row for row, _ in pairs]), _likelihoods(lm, [row for _, row in pairs])]
        orders = [train.order(len(some), self.batch, self.steps, self.seed) for some in (pairs, answered)]
        log.metrics(pairs=len(pairs), share=self.share)
        with self.mending(lm, form, log, touched) as walk:
            for number in walk.steps():
                ours, theirs = (order[number] for order in orders)
                sides = [[pairs[i][side] for i in ours] for side in (0, 1)]
                better, worse = (
                    train.likelihood(lm.model, train.collate(lm, train.encode(lm, rows))) - known[ours]
                    for rows, known in zip(sides, before, strict=True)
                )
                preference = losses.preference(better - worse, self.beta).mean()
                told = train.collate(lm, train.encode(lm, sides[0] + [answered[i] for i in theirs]))
                kept = train.answer_loss(lm.model, told)
                (preference + self.kept * kept).backward()
                walk.step(preference=preference.detach(), kept=kept.detach())

    def _touched(self, lm: LM, refused: list[Row]) -> dict[str, Tensor]:
        """Masks of the weights that refusals hang on most."""
        some = random.Random(self.seed).sample(refused, min(self.scored, len(refused)))
        targets = pruning.targets(lm.model)
        scores = pruning.sensitivities(lm, train.encode(lm, some), targets)
        weights = dict(lm.model.named_parameters())
        masks = {target.name: torch.zeros_like(weights[target.name], dtype=torch.bool) for target in targets}
        for target in targets:
            target.matrix(masks).copy_(~pruning.lowest(scores[target.key], 1 - self.share) & (scores[target.key] > 0))
        return masks


@torch.no_grad()
def _likelihoods(lm: LM, rows: list[Row]) -> Tensor:
    """Of each row's answer, shape (rows,)."""
    batches = (rows[start : start + lm.drive.batch] for start in range(0, len(rows), lm.drive.batch))
    return torch.cat([train.likelihood(lm.model, train.collate(lm, train.encode(lm, some))) for some in batches])
