"""Weights that lie on a lattice, as every even quantizer leaves them: found by looking at them, and kept while they are trained.

A lattice is start + step · (whole numbers) for each group of a row, whoever made it: rounding to nearest, with or without a zero
point, GPTQ. Each group's least and greatest weight stay where they are, so whoever rounds again in the same way finds the same
steps and changes nothing. Knows tensors, no models. Does not know uneven codebooks (nf4).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

GROUPS = (256, 128, 64, 32, 16)
"""Weights of a row that may share a step, beside a whole row."""
MOST_BITS = 8
NEAR = 0.02
"""How far from a whole number of steps a weight may lie, in steps: bf16 keeps 8 bits of each."""


class Lattice(NamedTuple):
    """Where the weights of one parameter may lie, a group of the last axis at a time; each of shape (..., groups, 1)."""

    step: Tensor
    """0 where all weights of a group are alike."""
    low: Tensor
    high: Tensor
    group: int
    """Weights of a group."""

    @classmethod
    def of(cls, matrix: Tensor) -> "Lattice | None":
        """That of a tensor (..., inputs) in few bits, in the largest groups that it fits; None if there is none."""
        size = matrix.shape[-1]
        if size < GROUPS[-1]:
            return None  # so few values would lie on some lattice by chance
        for group in (size, *(width for width in GROUPS if width < size and size % width == 0)):
            found = cls._of(_parts(matrix, group), group)
            if found:
                return found if bool(found.step.any()) else None
        return None

    @classmethod
    def _of(cls, parts: Tensor, group: int) -> "Lattice | None":
        """That of groups (..., group), if each lies on one."""
        low, high = parts.amin(-1, keepdim=True), parts.amax(-1, keepdim=True)
        apart = parts.sort(-1).values.diff(dim=-1)
        apart = torch.where(apart > 1e-4 * (high - low), apart, torch.inf).amin(-1, keepdim=True)
        step, fits = torch.zeros_like(low), low == high
        for divisor in (1, 2, 3):  # no two weights need be neighbors on the lattice
            steps = ((high - low) / apart * divisor).round()
            tried = (high - low) / steps.clamp(min=1)
            places = (parts - low) / tried.where(tried > 0, 1)
            good = ((places - places.round()).abs() <= NEAR).all(-1, keepdim=True) & (steps < 2**MOST_BITS)
            step, fits = torch.where(good & ~fits, tried, step), fits | good
        return cls(step, low, high, group) if bool(fits.all()) else None

    @property
    def bits(self) -> int:
        """Of a weight: enough for every step between a group's least and greatest."""
        steps = ((self.high - self.low) / self.step.where(self.step > 0, 1)).max()
        return math.ceil(math.log2(float(steps.round()) + 1))

    def ends(self, start: Tensor) -> Tensor:
        """A mask of one least and one greatest weight of each group, which fix its steps."""
        parts = _parts(start, self.group)
        mask = torch.zeros_like(parts, dtype=torch.bool)
        for place in (parts.argmin(-1, keepdim=True), parts.argmax(-1, keepdim=True)):
            mask.scatter_(-1, place, True)
        return mask.reshape(start.shape)

    def change(self, start: Tensor, wanted: Tensor) -> Tensor:
        """The change in whole steps that is nearest to the wanted one, within each group's range."""
        first, change = _parts(start, self.group), _parts(wanted, self.group)
        step = self.step.where(self.step > 0, torch.inf)
        least, most = (((end - first) / step).round() for end in (self.low, self.high))
        whole = torch.minimum(torch.maximum((change / step).round(), least), most)
        return (whole * self.step).reshape(start.shape)

    def within(self, change: Tensor) -> Tensor:
        """A change shortened so far that it rounds to none."""
        half = (0.499 * self.step).expand(*self.step.shape[:-1], self.group).reshape(change.shape)
        return torch.minimum(torch.maximum(change, -half), half)


class Held(nn.Module):
    """One parameter in its form: given what it should be, gives the nearest that it may be.

    As a parametrization it lets gradients pass straight through the rounding (1308.3432), and stops them at weights that stay.
    """

    def __init__(self, start: Tensor, axis: int, zero: Tensor | None, lattice: Lattice | None):
        """`axis`: the output axis, as `anatomy.Use` has it; `zero`: which weights are pruned, in the parameter's own shape."""
        super().__init__()
        self.start, self.axis, self.zero, self.lattice = start, axis, zero, lattice
        stays = lattice.ends(self._inward(start)) if lattice else None
        stays = self._inward(stays) if stays is not None else torch.zeros_like(start, dtype=torch.bool)
        self.stays = stays if zero is None else stays | zero

    def _inward(self, weight: Tensor) -> Tensor:
        """Inputs along the last axis; its own inverse."""
        return weight if self.axis == -2 else weight.transpose(-1, -2)

    def forward(self, wanted: Tensor) -> Tensor:
        change = wanted - self.start
        if self.lattice:
            whole = self._inward(self.lattice.change(self._inward(self.start), self._inward(change.detach())))
            change = change + (whole - change).detach()
        return self.start + change.masked_fill(self.stays, 0)

    def toward(self, source: Tensor) -> Tensor:
        """What is given back as the start and lies as near to the source's weight as that allows: where training begins."""
        if self.lattice is None:
            return self.start.clone()
        return self.start + self._inward(self.lattice.within(self._inward(source - self.start)))


def _parts(matrix: Tensor, group: int) -> Tensor:
    return matrix.float().reshape(*matrix.shape[:-1], matrix.shape[-1] // group, group)
