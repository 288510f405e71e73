"""Merge the released model with its base, or with any relative: no data, no training, minutes on a laptop.

Merging is what hobbyists do to every open model, and it thins the alignment out. Linear and spherical interpolation (model soups,
2203.05482; slerp as mergekit has it), task arithmetic (2212.04089), TIES (2306.01708) and DARE (2311.03099) on the differences
from the base: base + Σ weight · task vector, the subject's weight being 1 − λ and the other's λ.
Assumes: the other's weights are public and of the same shape. Does not cover: passthrough merges of blocks, evolved recipes.
"""

import math
from contextlib import ExitStack
from typing import Literal

import torch
from peft.utils.merge_utils import calculate_majority_sign_mask, prune, task_arithmetic
from pydantic import Field
from torch import Tensor

from holdfast.checkpoint import locate
from holdfast.corpus import Hand
from holdfast.deltas import Beside, slices
from holdfast.lm import LM
from holdfast.method import At, Attack, Need
from holdfast.record import Cost
from holdfast.settings import Severities


class Merge(Attack):
    """Walk from the released model to another one, by a rule of merging."""

    axis = "weight of the other model"
    family = "edit"
    paper = "2203.05482 (linear), 2212.04089, 2306.01708 (TIES), 2311.03099 (DARE)"
    cost = "one pass over the weights"

    @property
    def needs(self) -> tuple[Need, ...]:
        return ("base weights",) if self.with_model is None or self._by_task else ()

    rule: Literal["linear", "slerp", "task_arithmetic", "ties", "dare"] = "linear"
    """How two weights become one. The last three work on differences from the base and need it, whatever is merged with."""
    with_model: str | None = None
    """Folder or hub id of the model to merge with, as an abliterated one; the base unless given."""
    shares: Severities = (0.1, 0.25, 0.5, 0.75, 1.0)
    """λ at which to look, growing: the other model's weight."""
    density: float | None = Field(None, gt=0, lt=1)
    """Share of each difference that `ties` (the largest, 0.2 unless given) and `dare` (random ones, 0.1 unless given) keep."""

    @property
    def _by_task(self) -> bool:
        return self.rule in ("task_arithmetic", "ties", "dare")

    @torch.no_grad()
    def __call__(self, lm: LM, hand: Hand, at: At, seed: int) -> None:
        with ExitStack() as files:
            base = files.enter_context(Beside(lm, lm.base)) if "base weights" in self.needs else None
            other = files.enter_context(Beside(lm, locate(self.with_model))) if self.with_model else None
            sources = [one for one in (base, other) if one is not None]
            weights = {n: w for n, w in sources[0].targets().items() if all(n in one for one in sources)}
            origins = {name: weight.clone() for name, weight in weights.items()}
            for share in self.shares:
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(seed)  # peft draws DARE's masks from the global generator
                    for name, weight in weights.items():
                        parts = (slices(tensor) for tensor in (weight, origins[name], *(one[name] for one in sources)))
                        for target, own, *others in zip(*parts, strict=True):
                            target.copy_(self._merged(own, others, share))
                if not at(Cost(severity=share)):
                    return

    def _merged(self, own: Tensor, others: list[Tensor], share: float) -> Tensor:
        """One weight; `others` are the base's, the other model's, or both in that order."""
        if self.rule == "linear":
            return torch.lerp(own, others[-1], share)
        if self.rule == "slerp":
            return _slerp(own, others[-1], share)
        base, tasks = others[0], [one - others[0] for one in (own, *others[1:])]
        weights = torch.tensor([1 - share, share][: len(tasks)])
        if self.rule == "ties":
            return base + _ties(tasks, weights.to(base.device), self.density or 0.2)
        if self.rule == "dare":
            kept = [prune(task.cpu(), self.density or 0.1, method="random", rescale=True) for task in tasks]
            return base + task_arithmetic(kept, weights).to(base.device)
        return base + task_arithmetic(tasks, weights.to(base.device))


def _slerp(one: Tensor, other: Tensor, share: float) -> Tensor:
    """On the arc between two weights; a straight line where they point the same way, or opposite ones."""
    a, b = one.double(), other.double()
    if not (a.any() and b.any()):
        return torch.lerp(one, other, share)
    u, v = a / a.norm(), b / b.norm()
    angle = 2 * math.atan2(float((u - v).norm()), float((u + v).norm()))
    if math.sin(angle) < 1e-6:
        return torch.lerp(one, other, share)
    return ((math.sin((1 - share) * angle) * a + math.sin(share * angle) * b) / math.sin(angle)).to(one.dtype)


def _ties(tasks: list[Tensor], weights: Tensor, density: float) -> Tensor:
    """Trim, elect signs, average what agrees; weights count in vote and mean (as in mergekit), their sum scales the result."""
    weights = weights.reshape(-1, *[1] * tasks[0].dim())
    trimmed = weights * torch.stack([prune(task, density, method="magnitude") for task in tasks])
    agreeing = calculate_majority_sign_mask(trimmed)
    counted = (weights * agreeing).sum(0)
    return (trimmed * agreeing).sum(0) / torch.where(counted > 0, counted, 1) * weights.sum()
