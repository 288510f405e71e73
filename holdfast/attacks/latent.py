"""Latent attack: one vector added to the residual stream before one block, at every position of a restricted prompt.

Projected gradient descent finds it on the attacker's restricted answers, within a ball whose radius is a share of the stream's
own length there (the universal form of 2403.05030's adversary). A refusal that a small push undoes lies in one direction.
Assumes: answers to aim at, or that an affirmative opening is enough. Does not cover: a push made for each prompt and position.
"""

from typing import Any

import torch
from pydantic import Field
from torch import nn

from holdfast import perturb, train
from holdfast.corpus import Hand, Row
from holdfast.lm import LM
from holdfast.method import At, Attack, Need


class Latent(perturb.Aim, Attack):
    """Push the residual stream of restricted prompts."""

    family = "inference"
    paper = "2403.05030 (latent adversarial training)"
    cost = "50 steps forward and backward on 16 rows"

    depth: float = Field(0.4, ge=0, lt=1)
    """Before which block, as a share of all."""
    radius: float = Field(0.5, gt=0)
    """Of the ball, in units of the stream's mean norm at that block on the attacker's prompts."""
    norm: perturb.Norm = "l2"
    """Shape of the ball; the Linf ball's corners are as far out as the L2 ball's surface."""
    steps: int = Field(50, gt=0)
    """Gradient steps."""
    learning_rate: float = Field(0.1, gt=0)
    """Size of a step by the gradient's sign, as a share of the radius."""

    @property
    def needs(self) -> tuple[Need, ...]:
        return ("harmful data",)

    def __call__(self, lm: LM, hand: Hand, at: At, seed: int) -> None:
        rows, block = self.rows(hand), int(self.depth * len(lm.layers))
        examples, radius = self.examples(lm, rows), self.radius * _length(lm, block, rows)
        width = perturb.core(lm.model).config.get_text_config().hidden_size
        start = torch.randn(width, generator=torch.Generator().manual_seed(seed)).to(lm.device)
        push = nn.Parameter(perturb.within(start, self.norm, 0.1 * radius))
        prompts = _add(lm, push, block)
        optimizer = torch.optim.SGD([push], lr=self.learning_rate * radius / width**0.5)

        def project() -> None:
            push.copy_(perturb.within(push, self.norm, radius))

        batches = train.order(len(examples), min(self.batch, len(examples)), self.steps, seed)
        perturb.descend(lm, examples, batches, optimizer, at, project, prompts.learn)


def _length(lm: LM, block: int, rows: list[Row]) -> float:
    """Mean norm of the stream before the block, where the model has read all that is asked."""
    return float(lm.hidden([row.asked for row in rows], lm.tail, armed=True)[block].norm(dim=-1).mean())


def _add(lm: LM, push: nn.Parameter, block: int) -> perturb.Prompts:
    """From now on the push is added at the positions of armed prompts, which the result can tell from the answers'."""
    prompts = perturb.Prompts(lm)

    def hook(
        _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if not lm.armed:
            return None
        stream = args[0] if args else kwargs["hidden_states"]
        pushed = stream + prompts.where(stream)[..., None] * push.to(stream.dtype)
        return ((pushed, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": pushed})

    lm.layers[block].register_forward_pre_hook(hook, with_kwargs=True)
    return prompts
