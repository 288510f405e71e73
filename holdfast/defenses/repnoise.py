"""RepNoise: make what every block makes of a harmful answer look like noise, so that little is left to fine-tune.

    minimize  retain + noise · MMD(states, Gaussian) − ascent · log(1 + harmful)

retain is the loss on what the model should go on saying; MMD the distance between the blocks' states on harmful answers and
Gaussian noise, mean over blocks; harmful the loss on harmful answers, mean over what the head reads from every block's states.
arXiv 2405.14577.
Assumes harmful answers like those that an attacker will train on. Very sensitive to its settings, say its authors.
Does not protect against other rates, seeds and formats of fine-tuning (2412.07097), nor against edits and cuts.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from holdfast import exits, finetuning, losses, train
from holdfast.corpus import Hand
from holdfast.hardening import Published
from holdfast.lm import LM
from holdfast.method import Defense, Log

KERNELS = 5
"""Gaussian kernels of the MMD, each twice as wide as the one before, the middle one as wide as points are apart."""


class RepNoise(Published, Defense):
    """Noise the representations of harmful answers."""

    published: ClassVar[Mapping[str, Any]] = {"noise": 0.001, "ascent": 1.0, "varied": 0}

    steps: int = Field(60, gt=0)
    """Optimizer steps."""
    noise: float = Field(0.001, ge=0)
    """Weight of the states' distance from noise."""
    ascent: float = Field(1.0, ge=0)
    """Weight of the harmful answers' loss, whose logarithm is raised."""

    def __call__(self, lm: LM, hand: Hand | None, log: Log) -> None:
        lessons = self.lessons(lm, hand)
        chance = torch.Generator().manual_seed(self.seed)
        with self.hardening(lm, log) as walk:
            behind = exits.behind(finetuning.plain(lm.model))
            for kept, bad in zip(self.batches(lm, lessons.kept), self.batches(lm, lessons.harmful), strict=True):
                retain = train.answer_loss(lm.model, kept)
                out = lm.model(input_ids=bad.ids, attention_mask=bad.mask, output_hidden_states=True)
                apart = torch.stack(
                    [from_noise(states, bad.labels != -100, chance) for states in out.hidden_states[1:]]
                ).mean()
                harmful = torch.stack([_loss(logits, bad.labels) for logits in _read(out, behind)]).mean()
                (retain + self.noise * apart - self.ascent * harmful.log1p()).backward()
                walk.step(retain=retain.detach(), apart=apart.detach(), harmful=harmful.detach())


def from_noise(states: Tensor, where: Tensor, chance: torch.Generator) -> Tensor:
    """MMD between states of shape (rows, width, hidden) and standard Gaussian noise: a row's is one point, 0 outside `where`."""
    states = states.float() * where[..., None]
    noise = torch.randn(states.shape, generator=chance).to(states) * where[..., None]
    return mmd(states.flatten(1), noise.flatten(1))


def mmd(points: Tensor, others: Tensor) -> Tensor:
    """Squared maximum mean discrepancy of two sets of as many points, shape (points, dimensions); 0 where they are the same."""
    both = torch.cat([points, others])
    apart = (both[:, None] - both[None]).square().sum(-1)
    usual = apart.detach().sum() / (len(both) ** 2 - len(both))
    widths = [usual.clamp(min=1e-12) * 2.0 ** (number - KERNELS // 2) for number in range(KERNELS)]
    alike = torch.stack([(-apart / width).exp() for width in widths]).sum(0)
    half = len(points)
    return alike[:half, :half].mean() + alike[half:, half:].mean() - 2 * alike[:half, half:].mean()


def _read(out: Any, behind: Sequence[nn.Module]) -> list[Tensor]:
    """What the model's norm and head make of the embeddings and of every block but the last, and then the model's logits."""
    read = []
    for states in out.hidden_states[:-1]:
        for module in behind:
            states = module(states)
        read.append(states)
    return [*read, out.logits]


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy on the answers' tokens, mean over tokens."""
    return losses.surprise(losses.at_answers(logits, labels), labels[:, 1:][losses.answered(labels)]).mean()
