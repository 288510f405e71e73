"""Re-initialize the last blocks, their norms or the head, by the model's own rule: a defense that hides in a few layers is gone.

Hardenings that plant a bad landscape for fine-tuning (or a lock in the head) are often undone by drawing the hardened layers
anew before training; alone it mostly ruins the model, so it belongs at the start of a sequence: reset, then attack.
Mixed with the old weights it is shrink-and-perturb (1910.08475).
Assumes: the weights can be written. Does not cover: earlier blocks, embeddings.
"""

import copy
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from holdfast.corpus import Hand
from holdfast.lm import LM
from holdfast.method import At, Attack
from holdfast.problem import Problem
from holdfast.record import Cost
from holdfast.settings import Severities


class Reinit(Attack):
    """Draw some weights anew, from the end of the model backward."""

    axis = "blocks re-initialized"
    family = "edit"
    paper = "anti-obfuscation (reset, then attack); 1910.08475"
    cost = "no computing"

    part: Literal["blocks", "norms", "head"] = "blocks"
    """`blocks`: all of the last blocks. `norms`: their norms only. `head`: the output embedding, at severity 1."""
    blocks: Severities = (1, 2)
    """How many of the last blocks, growing; of no matter for the head."""
    fresh: float = Field(1.0, gt=0, le=1)
    """Share of the fresh weights in the result; the rest are the old ones."""

    @torch.no_grad()
    def __call__(self, lm: LM, hand: Hand, at: At, seed: int) -> None:
        steps = [1.0] if self.part == "head" else self.blocks
        parts = self._parts(lm)
        if steps[-1] > len(parts) or any(step != int(step) for step in steps):
            raise Problem(
                f"attack reinit, blocks: {steps} must be whole numbers up to {len(parts)}, the model's blocks"
            )
        done = 0
        for step in steps:
            for number in range(done, int(step)):
                for module in parts[number]:
                    self._draw(lm, module, seed + number)
            done = int(step)
            if not at(Cost(severity=step)):
                return

    def _parts(self, lm: LM) -> list[list[nn.Module]]:
        """What belongs to severity 1, 2, and so on."""
        if self.part == "head":
            head, embedding = lm.model.get_output_embeddings(), lm.model.get_input_embeddings()
            if head is None or head.weight is embedding.weight:
                raise Problem(
                    "attack reinit, part: the model's head is its input embedding (tied); choose another part"
                )
            return [[head]]
        blocks = list(reversed(lm.layers))
        if self.part == "blocks":
            return [[block] for block in blocks]
        norms = [_norms(block) for block in blocks]
        if not any(norms):
            raise Problem("attack reinit, part: the model's norms hold no weight; choose another part")
        return norms

    def _draw(self, lm: LM, module: nn.Module, seed: int) -> None:
        """Drawn on the CPU, so that every device draws the same; a copy loses transformers' mark of what is loaded."""
        fresh = copy.deepcopy(module).cpu()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for part in fresh.modules():
                lm.model._init_weights(part)
        for weight, drawn in zip(module.parameters(), fresh.parameters(), strict=True):
            weight.lerp_(drawn.to(weight.device, weight.dtype), self.fresh)


def _norms(block: nn.Module) -> list[nn.Module]:
    """Innermost modules whose weights are all vectors."""
    inner = (module for module in block.modules() if not list(module.children()))
    return [one for one in inner if (weights := list(one.parameters())) and all(w.dim() == 1 for w in weights)]
