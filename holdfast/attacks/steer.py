"""Steering: subtract the direction of refusal from the residual stream while the model answers. No weight changes.

α times the harmful-minus-harmless mean is taken from the stream before the chosen layer at every token, so that at α = 1
harmful prompts look on average as harmless ones do there (activation addition, 2308.10248; on refusal 2406.11717). Of several
layers each takes off what the difference grew by since the one before, which the stream has lost already.
Assumes: the attacker runs the model himself. Does not cover: steering only where a prompt looks harmful.
"""

from typing import Annotated

from pydantic import AfterValidator
from torch import Tensor

from holdfast.corpus import Hand
from holdfast.lm import LM
from holdfast.method import At, Attack, Need
from holdfast.problem import Problem
from holdfast.record import Cost
from holdfast.refusal_direction import Selection, push, random_vectors
from holdfast.settings import Severities


def _within(span: tuple[float, float] | None) -> tuple[float, float] | None:
    if span is not None and not 0 <= span[0] < span[1] <= 1:
        raise ValueError("must be two growing shares of the depth, as 0.4 0.8")
    return span


class Steer(Selection, Attack):
    """Push the residual stream away from refusal, harder and harder."""

    axis = "strength of the steering"
    family = "inference"
    paper = "2308.10248 (Turner et al.), 2406.11717 (Arditi et al.)"
    cost = "some hundred forward passes"

    span: Annotated[tuple[float, float] | None, AfterValidator(_within)] = None
    """Steer before every layer between these shares of the depth, as 0.4 and 0.8, each along its own direction at the last
    token; unless given before one layer, chosen by trial."""
    random: bool = False
    """Random directions of the same length in place of the found ones: the negative control."""
    alphas: Severities = (0.5, 1.0, 1.5, 2.0)
    """How many times the difference of the means is subtracted, growing."""

    @property
    def needs(self) -> tuple[Need, ...]:
        return ("harmful data", "benign data")

    def __call__(self, lm: LM, hand: Hand, at: At, seed: int) -> None:
        vectors = self._vectors(lm, hand, seed)
        if self.random:
            drawn = random_vectors(lm, 1, seed)[:, 0]
            vectors = {layer: drawn[layer] * vector.norm() for layer, vector in vectors.items()}
        for alpha in self.alphas:
            handles = [push(lm.layers[layer], -alpha * vector) for layer, vector in vectors.items()]
            if not at(Cost(severity=alpha)):
                return
            if alpha != self.alphas[-1]:
                for handle in handles:
                    handle.remove()

    def _vectors(self, lm: LM, hand: Hand, seed: int) -> dict[int, Tensor]:
        """What is subtracted before which layer."""
        contrast = self.contrast(lm, hand, seed)
        if self.span is None:
            found = self.choose(lm, contrast)
            return {found.layer: found.difference}
        differences = contrast.differences(self.projected)[:, -1]
        depth = len(differences) - 1
        chosen = [layer for layer in range(depth) if self.span[0] <= layer / depth <= self.span[1]]
        if not chosen:
            raise Problem(
                f"attack steer: span: no layer of {depth} begins between {self.span[0]:g} and {self.span[1]:g}"
            )
        return {
            layer: differences[layer] - (differences[before] if before is not None else 0)
            for before, layer in zip([None, *chosen], chosen, strict=False)
        }
