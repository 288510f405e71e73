"""The form in which a cut left a model, found by looking at its weights beside its source's, and kept while it is repaired.

Three things make a form. Which blocks of the source remain: those that weights are most alike. Which weights are zero. And which
matrices lie on a lattice of few bits. Where nothing of that was done, any change is allowed.

Knows models and tensors, nothing of prompts. Uneven codebooks (nf4) are refused.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel

from holdfast import anatomy, surgery
from holdfast.lattice import Held, Lattice
from holdfast.problem import Problem

ALIKE = 0.05
"""Least cosine between a block and the one of the source that it comes from; those of strangers have about 0."""
_SOME = 0.01
"""Share of the zeros on a lattice that no rounding would give, from which they count as pruned."""


@dataclass(frozen=True)
class Format:
    """The form of a cut model."""

    kept: tuple[int, ...]
    """Numbers in the source of the blocks that remain."""
    blocks: int
    """How many the source has."""
    held: Mapping[str, Held]
    """Of the blocks' matrices that are not free."""
    fixed: frozenset[str]
    """Parameters that stay as they are: empty matrices, and embeddings and heads in few bits, which may be one and the same."""
    source: Mapping[str, Tensor]
    """The source's own weight in place of each parameter of the model."""
    absent: int
    """Weights of the source beside its blocks that the model lacks: an image encoder's behind the exit where it was cut."""

    @classmethod
    @torch.no_grad()
    def of(cls, model: PreTrainedModel, source: PreTrainedModel, what: str = "the cut model") -> "Format":
        """That of `model`, which was made from `source` by cutting it.

        Raises:
            Problem: it was not: another architecture, other shapes, blocks like none of the source's. Or a matrix takes few
                values that are not evenly spaced. `what` names it in messages.
        """
        kept = _kept(model, source, what)
        whole = len(anatomy.blocks(source))
        put_back = surgery.keep(source, kept)
        theirs = {name: weight.detach() for name, weight in source.named_parameters()}
        put_back()
        weights = dict(model.named_parameters())
        for name, weight in weights.items():
            if name not in theirs or theirs[name].shape != weight.shape:
                raise Problem(
                    f"{what}: its {name!r} of shape {list(weight.shape)} has no counterpart in the source; give the model that "
                    "it was cut from"
                )
        axes = {use.name: use.axis for use in anatomy.matrices(model)}
        others = {name: weight for name, weight in weights.items() if weight.dim() > 1 and name not in axes}
        fixed = {name for name, weight in others.items() if Lattice.of(weight.detach())}
        fixed |= {name for name in axes if not weights[name].any()}
        found = {
            name: _held(weights[name].detach().clone(), axis, theirs[name], f"{what}: its {name!r}")
            for name, axis in axes.items()
            if name not in fixed
        }
        held = {name: one for name, one in found.items() if one}
        absent = sum(weight.numel() for name, weight in theirs.items() if name not in weights)
        return cls(tuple(kept), whole, held, frozenset(fixed), {name: theirs[name] for name in weights}, absent)

    @property
    def pruned(self) -> float:
        """Share of the held matrices' weights that is zero for good."""
        zeros = [(int(one.zero.sum()) if one.zero is not None else 0, one.start.numel()) for one in self.held.values()]
        return float(sum(zero for zero, _ in zeros)) / max(1, sum(size for _, size in zeros))

    @property
    def bits(self) -> int | None:
        """Of the widest lattice; None without one."""
        return max((one.lattice.bits for one in self.held.values() if one.lattice), default=None)

    def __str__(self) -> str:
        """In a few words."""
        parts = [f"{len(self.kept)} of {self.blocks} blocks"] if len(self.kept) < self.blocks else []
        parts += [f"{self.absent:,} weights beside the blocks left out"] if self.absent else []
        parts += [f"{self.pruned:.0%} of the blocks' matrices pruned"] if self.pruned >= 0.005 else []
        parts += [f"weights in {self.bits} bits"] if self.bits else []
        return ", ".join(parts) or "the source's own"

    @torch.no_grad()
    def apply(self, model: PreTrainedModel, wanted: Mapping[str, Tensor]) -> None:
        """Set the named parameters to the nearest that they may be."""
        for name, weight in model.named_parameters():
            if name in wanted and name not in self.fixed:
                weight.copy_(self.held[name](wanted[name]) if name in self.held else wanted[name])

    def toward(self, name: str, weight: Tensor) -> Tensor:
        """A parameter, or where it lies on a lattice what rounds to it and is as near to the source's as that allows."""
        return self.held[name].toward(self.source[name]) if name in self.held else weight.detach()

    @contextmanager
    def training(self, model: PreTrainedModel, touched: Mapping[str, Tensor] | None = None) -> Iterator[None]:
        """Inside, whatever trains `model` moves latent weights, and the model computes with the nearest that its form allows.

        Args:
            touched: masks of the only weights that may move; parameters that are not named stay. Everything unless given.
        """
        undo: list[Callable[[], None]] = []
        try:
            for name, weight in list(model.named_parameters()):
                mask = None if touched is None else touched.get(name)
                if name in self.fixed or (touched is not None and mask is None):
                    weight.requires_grad_(False)
                elif name in self.held or mask is not None:
                    undo.append(self._hold(model, name, weight, mask))
            yield
        finally:
            for put_back in undo:
                put_back()
            model.requires_grad_(True)

    def _hold(self, model: PreTrainedModel, name: str, weight: nn.Parameter, mask: Tensor | None) -> Callable[[], None]:
        """Put a parameter into its form; returns what leaves an ordinary parameter there."""
        home, _, attribute = name.rpartition(".")
        module, known = model.get_submodule(home), self.held.get(name)
        held = Held(weight.detach().clone(), -2, None, None)
        if known:
            held = Held(known.start, known.axis, known.zero, known.lattice)
        held.stays = held.stays if mask is None else held.stays | ~mask
        latent = self.toward(name, weight)
        parametrize.register_parametrization(module, attribute, held, unsafe=True)
        with torch.no_grad():
            getattr(module.parametrizations, attribute).original.copy_(latent)
        return lambda: parametrize.remove_parametrizations(module, attribute)


def _held(weight: Tensor, axis: int, source: Tensor, what: str) -> Held | None:
    """A matrix in its form; None where it is free."""
    inward = weight if axis == -2 else weight.transpose(-1, -2)
    lattice, zero = Lattice.of(inward), weight == 0
    if lattice:
        far = (source if axis == -2 else source.transpose(-1, -2)).abs()
        steps = lattice.step.expand(*lattice.step.shape[:-1], lattice.group).reshape(inward.shape)
        odd = (inward == 0) & (far > steps)
        zero = zero if int(odd.sum()) > _SOME * max(1, int(zero.sum())) else torch.zeros_like(zero)
    elif _few(inward) and zero.float().mean() <= 0.5:
        raise Problem(
            f"{what} takes few values that are not evenly spaced, as nf4 leaves them, and no repair could keep them; repair a "
            "cut with an even grid"
        )
    return Held(weight, axis, zero if zero.any() else None, lattice) if lattice or zero.any() else None


def _few(inward: Tensor) -> bool:
    """Whether the weights of an input's row mostly take the same values."""
    different = (inward.sort(-1).values.diff(dim=-1) != 0).sum(-1)
    return bool(different.float().median() < inward.shape[-1] / 4)


def _kept(model: PreTrainedModel, source: PreTrainedModel, what: str) -> list[int]:
    """Of each block the number of the block of the source that it comes from, growing: the most alike of all such choices."""
    if type(model) is not type(source):
        raise Problem(
            f"{what}: is a {type(model).__name__}, the source a {type(source).__name__}; give the model that it was cut from"
        )
    ours, theirs = anatomy.blocks(model), anatomy.blocks(source)
    if len(ours) > len(theirs):
        raise Problem(f"{what}: has {len(ours)} blocks, the source {len(theirs)}; give the model that it was cut from")
    alike = [[_cosine(one, other, what) for other in theirs] for one in ours]
    # best[j]: the greatest sum over the blocks so far, the last of which comes from one before j, and that choice
    best: list[tuple[float, list[int]]] = [(0.0, [])] * (len(theirs) + 1)
    for number, row in enumerate(alike):
        new: list[tuple[float, list[int]]] = [(-math.inf, [])] * (number + 1)
        for other in range(number, len(theirs)):
            total, chosen = best[other]
            new.append(max(new[-1], (total + row[other], [*chosen, other]), key=lambda one: one[0]))
        best = new
    kept = best[-1][1]
    if strange := [number for number, other in enumerate(kept) if alike[number][other] < ALIKE]:
        raise Problem(
            f"{what}: its block {strange[0]} is like none of the source's; give the model that it was cut from"
        )
    return kept


def _cosine(one: nn.Module, other: nn.Module, what: str) -> float:
    """Of all matrices of two blocks together."""
    pairs = dict(other.named_parameters())
    dot = left = right = 0.0
    for name, weight in one.named_parameters():
        if name not in pairs or pairs[name].shape != weight.shape:
            raise Problem(
                f"{what}: its blocks have {name!r} of shape {list(weight.shape)}, the source's have none such; give the model "
                "that it was cut from"
            )
        if weight.dim() > 1:
            dot += float((weight * pairs[name]).sum())
            left += float(weight.square().sum())
            right += float(pairs[name].square().sum())
    return dot / math.sqrt(max(left * right, 1e-30))
