"""Circuit breakers: bend what the model has in mind while it says something harmful to a right angle with what it had in mind.

    c · ReLU(cos(h, h₀)) on harmful answers  +  c′ · ‖h − h₀‖ on everything else        c = α (1 − t / 2T),  c′ = α t / 2T

h are the hidden states and h₀ those of the model as it was; at step t of T the weight moves from the first to the second.
Representation rerouting, arXiv 2406.04313; an adapter is trained, so that the model without it gives h₀.
Assumes that harm shows in these states whatever prompt led there. Made against jailbreaks: does not protect against fine-tuning,
which can bend the states back, nor against edits and cuts.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from holdfast.corpus import Hand
from holdfast.hardening import Published
from holdfast.lm import LM
from holdfast.method import Defense, Log
from holdfast.train import Batch


class CircuitBreakers(Published, Defense):
    """Reroute the representations of harmful answers."""

    published: ClassVar[Mapping[str, Any]] = {
        **{"alpha": 10.0, "retain": 1.0, "steps": 150, "batch": 16, "learning_rate": 1e-4},
        **{"schedule": "linear", "lora_rank": 16, "varied": 0},
    }

    steps: int = Field(60, gt=0)
    """Optimizer steps."""
    learning_rate: float = Field(1e-3, gt=0)
    """Of AdamW, at its highest."""
    alpha: float = Field(10.0, gt=0)
    """Of both losses; the published 10 is Llama 3's, Mistral's is 5."""
    retain: float = Field(1.0, ge=0)
    """Weight of the distance beside rerouting. The published 1 holds the text organism where it is: a cosine's gradient is 0
    where nothing has turned, a distance's is not."""
    depths: tuple[float, ...] = (10 / 32, 20 / 32)
    """Before which blocks harmful states are rerouted, as shares of all; blocks 10 and 20 of 32 are the published ones."""
    lora_rank: int = Field(16, gt=0)
    """Of the adapter that is trained on every linear layer (alpha twice the rank) and merged at the end."""

    def __call__(self, lm: LM, hand: Hand | None, log: Log) -> None:
        lessons = self.lessons(lm, hand)
        blocks = [int(depth * len(lm.layers)) for depth in self.depths]
        work = zip(self.batches(lm, lessons.harmful), self.batches(lm, lessons.kept), strict=True)
        with self.hardening(lm, log) as walk:
            for step, (harmful, kept) in enumerate(work, 1):
                share = step / (2 * self.steps)
                reroute = rerouting(*_both(lm, harmful, blocks), harmful.labels != -100)
                retain = distance(*_both(lm, kept), kept.mask.bool())
                (self.alpha * ((1 - share) * reroute + share * self.retain * retain)).backward()
                walk.step(reroute=reroute.detach(), retain=retain.detach())


def rerouting(states: Sequence[Tensor], before: Sequence[Tensor], where: Tensor) -> Tensor:
    """How far states of shape (rows, width, hidden) still point where they did: 0 at a right angle and beyond, 1 as before.

    Mean over the positions of `where`, shape (rows, width), and over layers. Those are the answers' alone here: the published
    loss counts prompts too, but a prompt also comes before a refusal.
    """
    layers = [
        torch.cosine_similarity(one[where], other[where], dim=-1) for one, other in zip(states, before, strict=True)
    ]
    return torch.stack(layers).relu().mean()


def distance(states: Sequence[Tensor], before: Sequence[Tensor], where: Tensor) -> Tensor:
    """Euclidean distance, mean over the positions of `where` and over layers; its gradient is 0 where nothing has moved."""
    layers = [
        torch.linalg.vector_norm(one[where] - other[where], dim=-1) for one, other in zip(states, before, strict=True)
    ]
    return torch.stack(layers).mean()


def _both(lm: LM, batch: Batch, blocks: Sequence[int] | None = None) -> tuple[list[Tensor], list[Tensor]]:
    """The states before these blocks, or all, in fp32: with the adapter, and without it."""
    with torch.no_grad(), lm.model.disable_adapter():
        before = _states(lm, batch, blocks)
    return _states(lm, batch, blocks), before


def _states(lm: LM, batch: Batch, blocks: Sequence[int] | None) -> list[Tensor]:
    states = lm.model(**batch.inputs, output_hidden_states=True).hidden_states
    return [states[block].float() for block in (range(len(states)) if blocks is None else blocks)]
