"""Abliteration: take the direction of refusal out of every weight that writes the residual stream. No training.

Refusal is carried by one direction, the difference between the stream's means after harmful and after harmless prompts;
W ← W − s·vvᵀW at every writer leaves the model nothing to refuse with (Arditi et al., 2406.11717).
Assumes: refusal shows in the stream, as a mean shift, before the answer begins. Does not cover: settings searched layer by
layer (`abliterate_search`), or refusals re-learned at each step (iterative re-probing).
"""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from holdfast.ablation import Ablation, Cut
from holdfast.corpus import Hand
from holdfast.lm import LM
from holdfast.method import At, Attack, Need
from holdfast.record import Cost
from holdfast.refusal_direction import Selection, random_vectors
from holdfast.settings import Severities


class Abliterate(Selection, Attack):
    """Project the direction of refusal out of the weights, further and further."""

    axis = "strength of the ablation"
    family = "edit"
    paper = "2406.11717 (Arditi et al.)"
    cost = "some hundred forward passes and one pass over the weights"

    scope: Literal["selected", "per layer"] = "selected"
    """`selected`: the direction of one layer and token, chosen by trial, for all weights. `per layer`: for each block the
    direction that its own output shows at the last token."""
    rank: int | None = Field(None, gt=0)
    """Take out so many leading directions of the whitened differences; the difference of means unless given."""
    norm_preserving: bool = False
    """Give every vector that a weight writes its length back."""
    random: bool = False
    """Random directions in place of the found ones, for the same edit: the negative control."""
    strengths: Severities = (0.25, 0.5, 0.75, 1.0)
    """Share of the direction taken out at which to look, growing; 1 leaves none of it."""

    @property
    def needs(self) -> tuple[Need, ...]:
        return () if self.random else ("harmful data", "benign data")

    def __call__(self, lm: LM, hand: Hand, at: At, seed: int) -> None:
        directions = self._random(lm, seed) if self.random else self._found(lm, hand, seed)
        ablation = Ablation(lm.model)
        for strength in self.strengths:
            cuts = [Cut(vectors, strength) for vectors in directions]
            ablation.set(lambda writer, cuts=cuts: _of(writer.layer, cuts), self.norm_preserving)
            if not at(Cost(severity=strength)):
                return

    def _found(self, lm: LM, hand: Hand, seed: int) -> Tensor:
        """Directions for what is written into the stream, by place: shape (layers + 1, rank, width)."""
        contrast = self.contrast(lm, hand, seed)
        places = range(len(contrast.harmful))
        if self.scope == "per layer":
            if self.rank is None:
                return contrast.differences(self.projected)[:, -1:]
            return torch.stack([contrast.whitened(layer, -1, self.rank, self.projected) for layer in places])
        found = self.choose(lm, contrast)
        vectors = found.difference[None]
        if self.rank is not None:
            vectors = contrast.whitened(found.layer, found.token, self.rank, self.projected)
        return vectors.expand(len(places), *vectors.shape)

    def _random(self, lm: LM, seed: int) -> Tensor:
        drawn = random_vectors(lm, self.rank or 1, seed)
        return drawn if self.scope == "per layer" else drawn[:1].expand_as(drawn)


def _of(layer: int | None, cuts: list[Cut]) -> Cut:
    """Embeddings write the stream before the first block, a block that behind itself; blocks beyond an exit never run."""
    return cuts[0 if layer is None else min(layer + 1, len(cuts) - 1)]
