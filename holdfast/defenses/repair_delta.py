"""The leading directions of the alignment added back to a cut model, as far as its form allows: no training.

    D = W_source − W_base        P = the rank-k part of D
    W_repaired = the nearest to W_cut + strength · P that is pruned, rounded and dropped as W_cut is

LoX's edit (2506.15606) with the cut's form kept. A rounded weight starts from its source's own value, as far as that rounds to
the same, so that small changes are not lost to rounding alone. Where the base is not at hand, `of = "cut"` takes the difference
from the cut model in place of D: what rounding took away. (Where weights were pruned or blocks dropped, what is left does not
differ.)
Assumes: what the cut left of the alignment still works where it is made stronger. Does not protect against fine-tuning, and what
refusals were learned in a block that is gone stays gone.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from holdfast import deltas, spectrum, surgery
from holdfast.corpus import Hand
from holdfast.formats import Format
from holdfast.lm import LM
from holdfast.method import Defense, Log
from holdfast.problem import Problem
from holdfast.repairing import Sourced, held_out, standing
from holdfast.settings import Severities

_SLACK = 1e-9
"""A bound met exactly is met, whatever the last digit of a subtraction says."""


class RepairDelta(Sourced, Defense):
    """Add the alignment's leading directions to what is left, in the cut's form."""

    of: Literal["alignment", "cut"] = "alignment"
    """Whose leading directions: the source's difference from its base, or from the cut model."""
    rank: int = Field(8, gt=0)
    """Singular directions a matrix; at or above its smaller side, all of them."""
    strengths: Severities = (0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)
    """What is tried on the defender's held-out prompts, growing. Taken is the first that refuses as the source does, or else the
    one that refuses most, of those within both bounds; none where the cut model itself refuses as the source does."""
    utility_loss: float = Field(0.02, ge=0, le=1)
    """Largest loss of right answers to benign prompts against the cut model."""
    over_refusal_rise: float = Field(0.02, ge=0, le=1)
    """Largest rise of refusals of benign and borderline prompts."""
    seed: int = 0
    """Of the random projections. They converge."""

    def __call__(self, lm: LM, hand: Hand | None, log: Log) -> None:
        if hand is None:
            raise Problem("repair_delta: a strength is chosen on the defender's prompts; give --corpus")
        source, form = self.origin(lm)
        log.metrics(form=str(form))
        start = {name: weight.detach().clone() for name, weight in lm.model.named_parameters()}
        edits = self._edits(lm, source, form)
        rows = held_out(hand)
        wanted = standing(source, rows)["refusal"]
        own, chosen = standing(lm, rows), (0.0, start)
        best = own["refusal"]
        log.metrics(strength=0.0, **own, wanted=wanted)
        for strength in self.strengths:
            if best >= wanted - _SLACK:
                break
            form.apply(
                lm.model, {name: form.toward(name, start[name]) + strength * edit for name, edit in edits.items()}
            )
            found = standing(lm, rows)
            log.metrics(strength=strength, **found)
            loss, rise = own["utility"] - found["utility"], found["over_refusal"] - own["over_refusal"]
            within = loss <= self.utility_loss + _SLACK and rise <= self.over_refusal_rise + _SLACK
            if within and found["refusal"] > best:
                best = found["refusal"]
                chosen = strength, {name: weight.detach().clone() for name, weight in lm.model.named_parameters()}
        with torch.no_grad():
            for name, weight in lm.model.named_parameters():
                weight.copy_(chosen[1][name])
        if not chosen[0] and best < wanted - _SLACK:
            log.metrics(warning="no strength brings a refusal back within the bounds; the model is as it was")
        log.metrics(chosen=chosen[0])

    def _edits(self, lm: LM, source: LM, form: Format) -> dict[str, Tensor]:
        """What is added at strength 1, of every matrix in which there is a difference."""
        others = self._others(lm, source, form)
        edits = {}
        for name, other in others.items():
            difference = form.source[name] - other
            parts = [self._leading(part.float()) for part in deltas.slices(difference)]
            edit = torch.stack(parts) if difference.dim() == 3 else parts[0]
            if edit.any():
                edits[name] = edit
        if not edits:
            other = "its base" if self.of == "alignment" else "the cut model"
            raise Problem(
                f"repair_delta: source and {other} differ in no matrix of what the cut left, so there is nothing to add back; "
                "take repair_distill"
            )
        return edits

    def _others(self, lm: LM, source: LM, form: Format) -> Mapping[str, Tensor]:
        """What the source's matrices are compared with."""
        if self.of == "cut":
            return {name: weight.detach() for name, weight in lm.model.named_parameters() if weight.dim() in (2, 3)}
        if lm.base is None:
            raise Problem('repair_delta: needs the source\'s base; give --base, or take of = "cut"')
        base = LM.load(lm.base, drive=lm.drive.change(template="plain"), device=str(lm.device))
        if type(base.model) is not type(source.model):
            raise Problem(
                f"{lm.base}: is no {type(source.model).__name__}; give the base that the source was aligned from"
            )
        surgery.keep(base.model, form.kept)
        found = {name: weight.detach() for name, weight in base.model.named_parameters() if weight.dim() in (2, 3)}
        for name, weight in form.source.items():
            if weight.dim() in (2, 3) and (name not in found or found[name].shape != weight.shape):
                raise Problem(f"{lm.base}: has no {name!r} of shape {list(weight.shape)}; give the base of the source")
        return {name: weight for name, weight in found.items() if name in form.source}

    def _leading(self, difference: Tensor) -> Tensor:
        """The part of the rank that is asked for."""
        if not difference.any() or self.rank >= min(difference.shape):
            return difference
        return spectrum.top(difference, self.rank, self.seed).matrix()
