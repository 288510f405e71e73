"""Fine-tuning at exits drawn by chance: each row's refusal or answer is learned behind another layer of the image encoder, or, of
a model that only reads, behind another depth.

The baseline that any safety at every exit has to beat (layer-randomized SFT, asked for in the reviews of 2411.04291). Labels are
what the model itself says where it is released; with `distilled`, its whole distribution over each next token (self-distillation
from the released exit). Early exits learn the refusals, and the released one stays as it was.
Assumes: exits that keep enough of a question to tell what is restricted. Does not protect against fine-tuning.
"""

import torch
from pydantic import Field
from torch import Tensor

from holdfast import losses, train
from holdfast.corpus import Hand
from holdfast.leavers import Leaving
from holdfast.lm import LM
from holdfast.method import Defense, Log


class ExitSFT(Leaving, Defense):
    """Teach every exit to say what the released one says."""

    steps: int = Field(300, gt=0)
    """Optimizer steps."""
    batch: int = Field(24, gt=0)
    """Restricted rows a step, and as many others."""
    learning_rate: float = Field(6e-5, gt=0)
    """Of AdamW, at its highest."""
    distilled: bool = False
    """Learn the released exit's distribution over each token instead of the token it chose."""

    def __call__(self, lm: LM, hand: Hand | None, log: Log) -> None:
        ladder = self.ladder(lm)
        refused, answered = self.prompts(lm, hand)
        work, teacher = self.mixed(refused, answered, ladder), self.before(lm, ladder) if self.distilled else None
        with self.hardening(lm, log, frozen=ladder.apart(lm)) as walk:
            for number in walk.steps():
                leavers = work[number]
                batch = train.collate(lm, train.encode(lm, leavers.rows))
                wanted = None
                if teacher is not None:
                    there = [ladder.released] * len(leavers.rows)
                    with torch.no_grad(), teacher() as known, ladder.left(known, leavers.images, there):
                        wanted = train.predictions(known.model, batch)
                with ladder.left(lm, leavers.images, leavers.exits):
                    loss = _loss(train.predictions(lm.model, batch), batch, wanted)
                loss.backward()
                walk.step(loss=loss)


def _loss(logits: Tensor, batch: train.Batch, wanted: Tensor | None) -> Tensor:
    """Mean over the answers' tokens."""
    if wanted is not None:
        return losses.divergence(logits, wanted).mean()
    return losses.surprise(logits, losses.targets(batch.labels)).mean()
