"""Vaccine: train what the model should say while the worst push of a given length acts on what its blocks read.

    push = rho · ∇ℓ(w) / ‖∇ℓ(w)‖  by what the blocks read, all of it together        w ← w − η ∇ℓ(w; push)

Two passes a step: the first finds the push, the second trains under it; nothing of it stays in the model. arXiv 2402.01109.
Harmful answers are not used. The paper's program pushes what attention gives; here it is the residual stream, which all have.
Assumes that fine-tuning breaks refusals by making hidden states drift, and that states which bear a push bear the drift.
Does not protect against a drift longer than the push, nor against edits and cuts.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from holdfast import hardening, train
from holdfast.corpus import Hand
from holdfast.lm import LM
from holdfast.method import Defense, Log


class Vaccine(hardening.Published, Defense):
    """Align under the worst push."""

    published: ClassVar[Mapping[str, Any]] = {
        **{"rho": 2.0, "batch": 5, "learning_rate": 1e-3},
        **{"schedule": "cosine", "weight_decay": 0.1, "lora_rank": 8, "varied": 0},
    }

    rho: float = Field(2.0, ge=0)
    """Length of the push, over all blocks, rows and positions of a batch together; 0 is plain training."""

    def __call__(self, lm: LM, hand: Hand | None, log: Log) -> None:
        lessons = self.lessons(lm, hand)
        with self.hardening(lm, log) as walk:
            for batch in self.batches(lm, lessons.kept):
                pushes, loss = worst(lm, batch, self.rho)
                with hardening.pushed(lm, pushes):
                    pushed = train.answer_loss(lm.model, batch)
                pushed.backward()
                walk.step(loss=loss, pushed=pushed.detach())


def worst(lm: LM, batch: train.Batch, length: float) -> tuple[dict[int, Tensor], float]:
    """The push of this length that raises the batch's loss most, as far as its gradient tells, block by block; and the loss."""
    shape = (*batch.ids.shape, hardening.width(lm))
    pushes = [torch.zeros(shape, device=lm.device, requires_grad=True) for _ in lm.layers]
    with hardening.pushed(lm, dict(enumerate(pushes))):
        loss = train.answer_loss(lm.model, batch)
    gradients = torch.autograd.grad(loss, pushes)
    norm = torch.linalg.vector_norm(torch.stack([gradient.norm() for gradient in gradients])).clamp(min=1e-12)
    return {block: gradient * (length / norm) for block, gradient in enumerate(gradients)}, float(loss.detach())
