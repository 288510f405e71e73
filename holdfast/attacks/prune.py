"""Set weights to zero: what a deployer does to make a model smaller, and an attacker to make it forget its refusals.

Magnitude, Wanda (2306.11695: |w|·‖x‖, compared within an output), SparseGPT (2301.00774: the rest makes up for what goes), and
the set difference of safety- and utility-critical weights (2402.05162), which aims at refusals alone; random masks are the
control. Block after block, each calibrated behind the pruned ones. Gates of mixtures of experts stay whole.
Assumes: calibration prompts. An expert that none of them reaches is pruned by magnitude (by `safety`: not at all).
Does not cover: whole heads, neurons, experts or layers; models made to turn harmful when pruned (2510.07985).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from holdfast import pruning, train
from holdfast.calibration import Calibration, rows
from holdfast.corpus import Hand
from holdfast.lm import LM
from holdfast.method import At, Attack, Need
from holdfast.problem import Problem
from holdfast.pruning import Pattern, Target
from holdfast.record import Cost
from holdfast.settings import Severities


class Prune(Attack):
    """Prune a growing share of every matrix of the blocks."""

    axis = "fraction pruned"
    family = "cut"
    paper = "2306.11695 (Wanda), 2301.00774 (SparseGPT), 2402.05162 (safety-critical set difference)"
    cost = "one forward pass over 64 prompts a block"

    @property
    def needs(self) -> tuple[Need, ...]:
        if self.by == "safety":
            return ("harmful data", "benign data")
        calibrated = self.by in ("wanda", "sparsegpt")
        return (f"{self.data} data",) if calibrated else ()

    by: Literal["magnitude", "wanda", "sparsegpt", "safety", "random"] = "wanda"
    """What decides which weights go; `random` is the control, with as many as by magnitude."""
    pattern: Pattern = "unstructured"
    """`2:4`: two of every four inputs of each output, the pattern that chips run faster; severity 0.5."""
    fractions: Severities | None = None
    """Shares of every matrix to prune, growing; 0.1, 0.2, 0.3, 0.5, 0.7 unless given, and 0.01 to 0.1 by `safety`."""
    data: Calibration = "benign"
    """Whose inputs calibrate `wanda` and `sparsegpt`: benign prompts and answers, or restricted ones."""
    examples: int = Field(64, gt=0)
    """Calibration rows, of each kind."""
    importance: Literal["snip", "wanda"] = "snip"
    """By `safety`: |w · ∂L/∂w| of the answers, or |w|·‖x‖ over their tokens."""
    spared: float = Field(0.4, ge=0, lt=1)
    """By `safety`: share of every matrix, the most important for benign answers, that stays. The paper's is 0.01 to 0.1, in
    models thousands of times as large as the organisms, which need more."""

    @model_validator(mode="after")
    def _agrees(self) -> "Prune":
        if self.fractions and self.fractions[-1] >= 1:
            raise ValueError("fractions must be below 1")
        if self.pattern == "2:4" and (self.fractions or self.by == "safety"):
            raise ValueError("2:4 takes one half, by magnitude, wanda, sparsegpt or random; leave out fractions")
        return self

    @property
    def points(self) -> tuple[float, ...]:
        """The shares at which to look."""
        if self.pattern == "2:4":
            return (0.5,)
        return self.fractions or ((0.01, 0.02, 0.03, 0.05, 0.1) if self.by == "safety" else (0.1, 0.2, 0.3, 0.5, 0.7))

    @torch.no_grad()
    def __call__(self, lm: LM, hand: Hand, at: At, seed: int) -> None:
        targets = pruning.targets(lm.model)
        names = {target.name for target in targets}
        weights = {name: weight.detach() for name, weight in lm.model.named_parameters() if name in names}
        self._refuse_odd(targets, weights)
        origins = {name: weight.clone() for name, weight in weights.items()}
        examples = self._examples(lm, hand, seed)
        measure = pruning.inputs if self.importance == "wanda" else pruning.sensitivities
        critical = [measure(lm, some, targets) for some in examples] if self.by == "safety" else []
        for fraction in self.points:
            for name, weight in weights.items():
                weight.copy_(origins[name])
            generator = torch.Generator().manual_seed(seed)
            for block in pruning.by_block(targets):
                calibrated = self.by in ("wanda", "sparsegpt")
                seen = pruning.inputs(lm, examples[0], block, self.by == "sparsegpt") if calibrated else {}
                for target in block:
                    matrix = target.matrix(weights)
                    if self.by == "safety":
                        safety, utility = (self._importance(matrix, some.get(target.key)) for some in critical)
                        matrix.masked_fill_(pruning.critical(safety, utility, fraction, self.spared), 0)
                    else:
                        matrix.copy_(self._pruned(matrix, seen.get(target.key), fraction, generator))
            if not at(Cost(severity=fraction)):
                return

    def _pruned(self, matrix: Tensor, seen: Tensor | None, fraction: float, generator: torch.Generator) -> Tensor:
        """The matrix with this share of its weights at zero; `seen` is what calibration says of its inputs."""
        if self.by == "sparsegpt" and seen is not None:
            return pruning.compensated(matrix, seen, fraction, self.pattern)
        if self.by == "random":
            scores = torch.rand(matrix.shape, generator=generator).to(matrix.device)
            return matrix.masked_fill(pruning.lowest(scores, fraction, self.pattern), 0)
        scores = matrix.abs() if seen is None else matrix.abs() * seen.sqrt()
        return matrix.masked_fill(pruning.lowest(scores, fraction, self.pattern, by_row=seen is not None), 0)

    def _importance(self, matrix: Tensor, measured: Tensor | None) -> Tensor:
        """Of each weight; zero where no token came by."""
        if measured is None:
            return torch.zeros_like(matrix)
        return matrix.abs() * measured.sqrt() if self.importance == "wanda" else measured

    def _examples(self, lm: LM, hand: Hand, seed: int) -> list[list[train.Example]]:
        """What to calibrate with: whole texts; by `safety` the model's own answers to restricted prompts, and benign ones."""
        if self.by == "safety":
            asked = rows(hand, "harmful", self.examples, seed)
            refusals = zip(asked, lm.generate([row.asked for row in asked]), strict=True)
            harmful = [row.model_copy(update={"answer": answer}) for row, answer in refusals]
            return [train.encode(lm, some) for some in (harmful, rows(hand, "benign", self.examples, seed))]
        if self.by in ("wanda", "sparsegpt"):
            asked = rows(hand, self.data, self.examples, seed)
            return [[replace(example, start=0) for example in train.encode(lm, asked)]]
        return []

    def _refuse_odd(self, targets: Sequence[Target], weights: dict[str, Tensor]) -> None:
        odd = [target.name for target in targets if target.matrix(weights).shape[1] % 4]
        if self.pattern == "2:4" and odd:
            raise Problem(f"attack prune, pattern: the inputs of {odd[0]} come in no fours; prune it unstructured")
