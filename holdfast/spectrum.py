"""The leading singular part of a matrix, by randomized subspace iteration that measures its own error, and what to add.

Two passes over the matrix per round, as in `torch.svd_lowrank`, but (a) the random start comes from a generator of its own,
so threads do not race for the global one, (b) every half round yields a residual, so the iteration ends as soon as the
projection is right, and (c) where the spectrum is too flat for that to happen the Gram matrix is decomposed instead.

Source: Halko, Martinsson, Tropp, 0909.4061; residual bounds as in Saad, Numerical Methods for Large Eigenvalue Problems.
Assumes fp32 input. Not for ranks near the full rank: there `torch.linalg.svd` is right.
"""

import zlib
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

OVERSAMPLING = 32
PASSES = 13
"""Products with the matrix before the spectrum counts as flat; 13 are six rounds, the `niter=6` of `torch.svd_lowrank`."""
TOLERANCE = 1e-3
"""Largest accepted estimate of ‖P − P*‖ / ‖P*‖, both in Frobenius norm, for the rank-k part P."""
_GRAM_ROWS = 4096


@dataclass(frozen=True)
class Top:
    """The rank-k part of an m×n matrix as left · diag(values) · rightᵀ."""

    left: Tensor
    """m×k, orthonormal columns."""
    values: Tensor
    """k singular values, descending."""
    right: Tensor
    """n×k, orthonormal columns."""
    following: float
    """The (k+1)-th singular value, 0 where there is none."""
    method: Literal["randomized", "exact"]

    def matrix(self) -> Tensor:
        """The rank-k part itself, m×n."""
        return (self.left * self.values) @ self.right.T

    def cut(self, rank: int) -> "Top":
        """The same matrix's part of a smaller rank."""
        if rank >= len(self.values):
            return self
        following = self.values[rank].item()
        return replace(
            self,
            left=self.left[:, :rank],
            values=self.values[:rank],
            right=self.right[:, :rank],
            following=following,
        )


Part = Literal["top", "full", "bottom", "random"]


@dataclass(frozen=True)
class Edit:
    """What is added to a matrix at strength 1: left · right, or a dense matrix."""

    left: Tensor | None
    right: Tensor | None
    dense: Tensor | None
    method: str
    share: float
    """‖P‖ / ‖D‖ for the rank-k part P of the difference D; the edit's norm is ‖P‖ too."""
    gap: float | None
    """σ_k / σ_{k+1}; None where there is no such singular value."""

    def add_to(self, matrix: Tensor, strength: float, rows: slice = slice(None)) -> None:
        """Add `strength` times these rows of the edit to an fp32 matrix that holds the same rows, in place."""
        if self.dense is not None:
            matrix.add_(self.dense[rows], alpha=strength)
        else:
            assert self.left is not None and self.right is not None
            matrix.addmm_(self.left[rows], self.right, alpha=strength)


def edit(difference: Tensor, rank: int, part: Part, seed: int, known: Top | None = None) -> Edit | None:
    """The part of `difference` that is to be added once, scaled to the norm of its rank-k part P.

    `known` spares the decomposition. For `bottom` the difference is overwritten. None if the matrix has no such part.
    """
    norm = torch.linalg.vector_norm(difference).item()
    if rank >= min(difference.shape):
        method, share, gap, largest = "exact", 1.0, None, None
    else:
        largest = (known or top(difference, rank, seed)).cut(rank)
        method, share = largest.method, min(1.0, torch.linalg.vector_norm(largest.values).item() / norm)
        gap = largest.values[-1].item() / largest.following if largest.following else None
    left = right = dense = None
    if part == "random":
        left, right = _random_part(difference, rank, seed, share * norm)
    elif part == "full" or (part == "top" and largest is None):
        dense = difference if share == 1.0 else difference * share
    elif part == "top":
        left, right = largest.left * largest.values, largest.right.T.contiguous()
    elif largest is None:
        return None
    else:
        dense = difference.addmm_(largest.left * largest.values, largest.right.T, alpha=-1)
        tail = torch.linalg.vector_norm(dense).item()
        if tail < 1e-4 * norm:  # rounding errors, not a direction
            return None
        dense.mul_(share * norm / tail)
    return Edit(left, right, dense, method, share, gap)


def _random_part(difference: Tensor, rank: int, seed: int, norm: float) -> tuple[Tensor, Tensor]:
    """QQᵀD of the given norm for a random orthonormal Q; other matrices get other Qs, equal ones (tied heads) the same."""
    mark = f"{seed} {list(difference.shape)} {torch.linalg.vector_norm(difference).item()!r}"
    generator = torch.Generator().manual_seed(zlib.crc32(mark.encode()))
    random = torch.randn(difference.shape[0], min(rank, difference.shape[0]), generator=generator)
    left = torch.linalg.qr(random.to(difference.device)).Q
    right = left.T @ difference
    return left, right * (norm / torch.linalg.vector_norm(right).item())


def top(matrix: Tensor, rank: int, seed: int, passes: int = PASSES) -> Top:
    """The part of rank `rank` of an fp32 matrix, the same for the same seed; the global random state is not touched."""
    width = rank + OVERSAMPLING
    if min(matrix.shape) <= 4 * width:
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        return _top(left, values, right.T, rank, "exact")
    return _randomized(matrix, rank, width, seed, passes) or _exact(matrix, rank)


def _randomized(matrix: Tensor, rank: int, width: int, seed: int, passes: int) -> Top | None:
    """Subspace iteration; None if the residual says that it did not converge."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(matrix.shape[1], width, generator=generator).to(matrix.device)
    near, values, far = _half(matrix @ torch.linalg.qr(start).Q, start)
    turned = True  # `near` spans rows of matrixᵀ, that is, it lies on the left
    for _ in range(passes - 1):
        image = _transposed(matrix, near) if turned else matrix @ near
        error = _error(image, values, far, rank)
        near, values, far = _half(image, near)
        turned = not turned
        if error <= TOLERANCE:
            left, right = (near, far) if turned else (far, near)
            return _top(left, values, right, rank, "randomized")
    return None


def _half(image: Tensor, basis: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """From image = A · basis: Ritz vectors on the image's side, Ritz values, Ritz vectors on the basis' side."""
    orthonormal, triangle = torch.linalg.qr(image)
    left, values, right = torch.linalg.svd(triangle)
    return orthonormal @ left, values, basis @ right.T


def _transposed(matrix: Tensor, columns: Tensor) -> Tensor:
    """matrixᵀ · columns, in the order that reads a row-major matrix along its rows (a third faster on a CPU)."""
    return (columns.T @ matrix).T


def _error(image: Tensor, values: Tensor, far: Tensor, rank: int) -> float:
    """Estimated relative error of the rank-k part after the half round that makes `image` from the values and vectors so far.

    The residual r_i = ‖A v_i − s_i u_i‖ is the part of the image outside the searched subspace, whose largest singular value
    there is about the smallest found, s_q: that leaks sin θ = r_i s_i / (s_i² − s_q²) out of the subspace. Inside it, the
    leak mixes with the direction k+1 in the ratio s_i² / (s_i² − s_{k+1}²). The half round shrinks it by s_q / s_i.
    """
    s = values[:rank].double()
    residual = torch.linalg.vector_norm(image[:, :rank] - far[:, :rank] * values[:rank], dim=0).double()
    tiny = torch.finfo(torch.float64).tiny
    outside = residual * s / (s**2 - values[-1].double() ** 2).clamp_min(tiny)
    inside = s**2 / (s**2 - values[rank].double() ** 2).clamp_min(tiny)
    sine = (outside * inside * values[-1] / s).nan_to_num(nan=1.0).clamp(max=1.0)
    return (torch.linalg.vector_norm(s * sine) / torch.linalg.vector_norm(s).clamp_min(tiny)).item()


def _exact(matrix: Tensor, rank: int) -> Top:
    """By the eigenvectors of the Gram matrix of the smaller side, in fp64: a full decomposition without full factors."""
    if matrix.shape[0] < matrix.shape[1]:
        flipped = _exact(matrix.T, rank)
        return replace(flipped, left=flipped.right, right=flipped.left)
    gram = torch.zeros(matrix.shape[1], matrix.shape[1], dtype=torch.float64, device=matrix.device)
    for rows in matrix.split(_GRAM_ROWS):
        gram += rows.T @ rows
    vectors = torch.linalg.eigh(gram).eigenvectors[:, -(rank + 1) :].flip(1).float()
    left, values, right = _half(matrix @ vectors, vectors)
    return _top(left, values, right, rank, "exact")


def _top(left: Tensor, values: Tensor, right: Tensor, rank: int, method: Literal["randomized", "exact"]) -> Top:
    following = values[rank].item() if len(values) > rank else 0.0
    return Top(left[:, :rank].contiguous(), values[:rank], right[:, :rank].contiguous(), following, method)
