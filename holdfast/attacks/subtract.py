"""Subtract the released-minus-base delta: one line, no data, no training, and it knows the defense.

Whoever has the base checkpoint can walk back to it, W − λ(W − W_base), or take back only the delta's leading directions, which
is what undoes low-rank extrapolation (LoX, 2506.15606; see also 2306.14870 on negative task vectors).
Assumes: the base weights are public. Does not cover: a base that never knew the restricted things.
"""

import torch
from pydantic import Field
from torch import Tensor

from holdfast.corpus import Hand
from holdfast.deltas import Beside, slices
from holdfast.lm import LM
from holdfast.method import At, Attack, Need
from holdfast.record import Cost
from holdfast.settings import Severities
from holdfast.spectrum import top


class Subtract(Attack):
    """Walk from the released weights to the base's."""

    axis = "share of the delta"
    family = "edit"
    paper = "2306.14870 (task vectors), against LoX 2506.15606"
    cost = "one pass over the weights"

    @property
    def needs(self) -> tuple[Need, ...]:
        return ("base weights",)

    shares: Severities = (0.25, 0.5, 0.75, 1.0)
    """λ at which to look, growing; 1 takes back the whole delta."""
    rank: int | None = Field(None, gt=0)
    """Take back only this many leading directions of each matrix (of each expert's); everything unless given."""

    @torch.no_grad()
    def __call__(self, lm: LM, hand: Hand, at: At, seed: int) -> None:
        with Beside(lm, lm.base) as base:
            weights = base.targets()
            origins = {name: weight.clone() for name, weight in weights.items()}
            ends = {name: self._end(origin, base[name], seed) for name, origin in origins.items()}
        for share in self.shares:
            for name, weight in weights.items():
                weight.copy_(torch.lerp(origins[name], ends[name], share))  # exact at 1
            if not at(Cost(severity=share)):
                return

    def _end(self, origin: Tensor, base: Tensor, seed: int) -> Tensor:
        """Where the walk leads at λ = 1."""
        rank = self.rank
        if rank is None or origin.dim() < 2 or min(origin.shape[-2:]) <= rank:
            return base
        parts = [top(delta.float(), rank, seed).matrix() for delta in slices(origin - base)]
        return origin - torch.stack(parts).reshape(origin.shape).to(origin.dtype)
