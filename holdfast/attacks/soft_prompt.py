"""Soft prompt: one suffix of free vectors in place of token embeddings, the same after every restricted prompt.

The vectors start as those of random tokens and descend, by the gradient's sign, on the loss of the attacker's restricted answers
(2402.09063, soft prompt threats). With a `bound` they stay near real tokens: the embedding attack.
Assumes: answers to aim at, or that an affirmative opening is enough. Does not cover: a suffix for each prompt.
"""

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from holdfast import perturb, train
from holdfast.corpus import Hand
from holdfast.lm import LM
from holdfast.method import At, Attack, Need


class SoftPrompt(perturb.Aim, Attack):
    """Optimize a suffix in the space of embeddings."""

    family = "inference"
    paper = "2402.09063 (Schwinn et al.)"
    cost = "200 steps forward and backward on 16 rows"

    tokens: int = Field(20, gt=0)
    """Length of the suffix."""
    steps: int = Field(200, gt=0)
    """Gradient steps."""
    learning_rate: float = Field(0.05, gt=0)
    """Size of a step, in units of the embeddings' root mean square value (0.001 on Llama 2 and 3)."""
    bound: float | None = Field(None, gt=0)
    """Farthest that a vector may go from the token it starts as (L2), in units of the embeddings' mean norm."""

    @property
    def needs(self) -> tuple[Need, ...]:
        return ("harmful data",)

    def __call__(self, lm: LM, hand: Hand, at: At, seed: int) -> None:
        rows = self.rows(hand)
        lm.drive, token = perturb.place(lm, self.tokens, [row.text for row in rows])
        examples = self.examples(lm, rows)
        start, size = _random_tokens(lm, examples, self.tokens, seed)
        suffix = nn.Parameter(start.clone())
        _insert(lm, suffix, token)
        optimizer = torch.optim.SGD([suffix], lr=self.learning_rate * size / start.shape[1] ** 0.5)

        def project() -> None:
            if self.bound is not None:
                suffix.copy_(start + perturb.within(suffix - start, "l2", self.bound * size))

        batches = train.order(len(examples), min(self.batch, len(examples)), self.steps, seed)
        perturb.descend(lm, examples, batches, optimizer, at, project)


@torch.no_grad()
def _random_tokens(lm: LM, examples: list[train.Example], count: int, seed: int) -> tuple[Tensor, float]:
    """Embeddings of tokens drawn from the attacker's rows, shape (count, width), and the mean norm of all theirs."""
    embed = perturb.core(lm.model).get_input_embeddings()
    ids = torch.tensor(sorted({token for one in examples for token in one.ids}))
    generator = torch.Generator().manual_seed(seed)
    chosen = ids[torch.randint(len(ids), (count,), generator=generator)]
    return embed(chosen.to(lm.device)), float(embed(ids.to(lm.device)).norm(dim=-1).mean())


def _insert(lm: LM, suffix: nn.Parameter, token: int) -> None:
    """From now on the suffix stands where an armed prompt holds the run of placeholders."""

    def hook(_: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor | None:
        if not lm.armed:
            return None
        rows, columns = perturb.first_runs(args[0], token, len(suffix))
        if not len(rows):
            return None
        return out.index_put(
            (rows[:, None].expand_as(columns), columns), suffix.to(out.dtype).expand(len(rows), -1, -1)
        )

    perturb.core(lm.model).get_input_embeddings().register_forward_hook(hook)
