"""Booster: train so that one step on harmful rows lowers the harmful loss as little as possible.

    minimize  f(w) + strength · [h(w) − h(w − alpha · ∇h(w) / ‖∇h(w)‖)]

f is the loss on what the model should go on saying, h the one on harmful answers. Three passes a step, first order: the perturbed
weights count as w plus a constant. arXiv 2409.01586.
Assumes harmful answers like those that an attacker will train on, and an attack that starts with steps like these. Does not
protect against many steps, which leave the neighborhood where the loss was made flat, nor against edits and cuts.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from holdfast import inner, train
from holdfast.corpus import Hand
from holdfast.hardening import Published
from holdfast.lm import LM
from holdfast.method import Defense, Log


class Booster(Published, Defense):
    """Make a harmful step gain little."""

    published: ClassVar[Mapping[str, Any]] = {
        **{"strength": 5.0, "alpha": 0.1, "steps": 10_000, "batch": 10, "learning_rate": 5e-4},
        **{"schedule": "constant", "weight_decay": 0.1, "lora_rank": 32, "varied": 0},
    }

    steps: int = Field(60, gt=0)
    """Optimizer steps."""
    strength: float = Field(0.01, ge=0)
    """Weight of what a harmful step gains; 0 is plain training. The published 5 made the text organism answer everything, because
    a harmful loss that is low already has little to gain."""
    alpha: float = Field(0.1, gt=0)
    """Length of the simulated harmful step, over all weights together."""

    def __call__(self, lm: LM, hand: Hand | None, log: Log) -> None:
        lessons = self.lessons(lm, hand)
        with self.hardening(lm, log) as walk:
            for kept, harmful in zip(self.batches(lm, lessons.kept), self.batches(lm, lessons.harmful), strict=True):
                gain, gradients = gained(
                    lambda batch=harmful: train.answer_loss(lm.model, batch), walk.weights, self.alpha
                )
                loss = train.answer_loss(lm.model, kept)
                loss.backward()
                for weight, gradient in zip(walk.weights, gradients, strict=True):
                    along = self.strength * gradient
                    weight.grad = along if weight.grad is None else weight.grad + along
                walk.step(loss=loss.detach(), gain=gain)


def gained(h: Callable[[], Tensor], weights: Sequence[nn.Parameter], alpha: float) -> tuple[float, list[Tensor]]:
    """How far a step of length `alpha` down the gradient lowers `h`, and that number's gradient with the step held constant."""
    here, before = _gradients(h, weights)
    length = torch.linalg.vector_norm(torch.stack([gradient.norm() for gradient in before])).clamp(min=1e-12)
    with inner.kept(weights):
        with torch.no_grad():
            for weight, gradient in zip(weights, before, strict=True):
                weight.sub_(gradient * (alpha / length))
        there, after = _gradients(h, weights)
    return float(here - there), [one - other for one, other in zip(before, after, strict=True)]


def _gradients(h: Callable[[], Tensor], weights: Sequence[nn.Parameter]) -> tuple[Tensor, list[Tensor]]:
    """The loss, and its gradient by each weight: zero by those that no row reaches, as experts that were not asked."""
    loss = h()
    return loss.detach(), list(torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True))
