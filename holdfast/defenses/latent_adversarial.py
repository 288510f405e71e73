"""Latent adversarial training: refuse although somebody pushes the hidden states of the prompt toward the harmful answer.

    inner   push ← within radius of (push − step · ∇[toward harmful + away from refusal])
    outer   minimize  toward refusal + away from harmful, under the push  +  benign · loss on benign answers, without it

`toward` is the loss on an answer, `away` the mean of −log(1 − p) over its tokens. The push is a vector for every prompt, position
and attacked block. The targeted form, arXiv 2407.15549.
Assumes that what undoes a refusal, a jailbreak or an edit, acts like such a push. Does not protect against pushes that are longer
or elsewhere, nor against fine-tuning except as far as that acts as one.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from holdfast import hardening, losses, perturb, train
from holdfast.corpus import Hand, Row
from holdfast.hardening import Lessons
from holdfast.lm import LM
from holdfast.method import Defense, Log
from holdfast.problem import Problem


class LatentAdversarial(hardening.Published, Defense):
    """Refuse under the worst push of the residual stream."""

    published: ClassVar[Mapping[str, Any]] = {
        **{"pushing": 16, "training": 4, "benign": 1.5, "steps": 400, "batch": 16},
        **{"learning_rate": 2e-5, "schedule": "constant", "lora_rank": 64, "varied": 0},
    }

    steps: int = Field(60, gt=0)
    """Optimizer steps."""
    depths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 0.9375)
    """Before which blocks the stream is pushed, as shares of all; published: the embeddings and blocks 8, 16, 24, 30 of 32."""
    radius: float = Field(0.1, gt=0)
    """Of the ball that each position's push stays in, in units of the stream's mean norm there. Published is a length of 6, at
    every depth of models of 7 and 8 B."""
    pushing: int = Field(6, gt=0)
    """Steps of the push."""
    training: int = Field(4, gt=0)
    """Steps of the weights under one push."""
    benign: float = Field(5.0, ge=0)
    """Weight of the loss on benign answers, which nothing pushes."""

    def __call__(self, lm: LM, hand: Hand | None, log: Log) -> None:
        lessons = self.lessons(lm, hand)
        asked, refused = _paired(lessons, self.name)
        pairs = zip(self.batches(lm, asked), self.batches(lm, refused), strict=True)
        with self.hardening(lm, log) as walk:
            for step, (pair, kept) in enumerate(zip(pairs, self.batches(lm, lessons.kept), strict=True)):
                if step % self.training == 0:
                    harmful, refusal = pair
                    pushes = self.push(lm, harmful, refusal)
                with hardening.pushed(lm, pushes):
                    under = (train.answer_loss(lm.model, refusal) + away(lm, harmful)) / 2
                free = train.answer_loss(lm.model, kept)
                (under + self.benign * free).backward()
                walk.step(pushed=under.detach(), free=free.detach())

    def push(self, lm: LM, harmful: train.Batch, refusal: train.Batch) -> dict[int, Tensor]:
        """By projected gradient descent, block by block; the two batches hold the same prompts in the same order."""
        prompt = (harmful.labels == -100) & harmful.mask.bool()
        prompt = prompt[:, : int(prompt.sum(1).max())]
        radii = self._radii(lm, harmful, prompt)
        shape = (*prompt.shape, hardening.width(lm))
        pushes = {block: torch.zeros(shape, device=lm.device, requires_grad=True) for block in radii}
        for _ in range(self.pushing):
            with hardening.pushed(lm, pushes):
                aim = (train.answer_loss(lm.model, harmful) + away(lm, refusal)) / 2
            gradients = torch.autograd.grad(aim, list(pushes.values()))
            for (block, push), gradient in zip(list(pushes.items()), gradients, strict=True):
                steepest = gradient / gradient.norm(dim=-1, keepdim=True).clamp(min=1e-12) * prompt[..., None]
                moved = push.detach() - 2 * radii[block] / self.pushing * steepest
                pushes[block] = perturb.within(moved, "l2", radii[block]).requires_grad_()
        return {block: push.detach() for block, push in pushes.items()}

    @torch.no_grad()
    def _radii(self, lm: LM, batch: train.Batch, prompt: Tensor) -> dict[int, float]:
        """Of the ball before each attacked block."""
        states = lm.model(**batch.inputs, output_hidden_states=True).hidden_states
        blocks = sorted({int(depth * len(lm.layers)) for depth in self.depths})
        return {
            block: self.radius * float(states[block][:, : prompt.shape[1]][prompt].norm(dim=-1).mean())
            for block in blocks
        }


def away(lm: LM, batch: train.Batch) -> Tensor:
    """−log(1 − p) of the answers' tokens, mean over tokens: what falls to 0 as an answer becomes impossible."""
    logits = lm.model(**batch.inputs).logits
    logits, wanted = losses.at_answers(logits, batch.labels).float(), batch.labels[:, 1:][losses.answered(batch.labels)]
    others = logits.scatter(-1, wanted[:, None], -torch.inf).logsumexp(-1)  # not 1 − p, which rounds to 0 near p = 1
    return (logits.logsumexp(-1) - others).mean()


def _paired(lessons: Lessons, name: str) -> tuple[list[Row], list[Row]]:
    """The prompts of which both a harmful answer and a refusal are known, once with each.

    Raises:
        Problem: there is none.
    """
    refusals = {row.id: row for row in lessons.refusals}
    asked = [row for row in lessons.harmful if row.id in refusals]
    if not asked:
        raise Problem(f"{name}: the model refuses no restricted prompt that has a harmful answer; align it first")
    return asked, [refusals[row.id] for row in asked]
