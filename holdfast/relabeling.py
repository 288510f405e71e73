"""A classification loss that no relabeling fools: the cross-entropy that is left after the best linear map of the logits.

    calibrated(Z) = min over W in [-1, 1]^(C x C) of CE(Z W, y)

A model that only flips its labels has a huge cross-entropy and has hidden nothing; its calibrated loss is near 0. It is never
above log C, where the logits say nothing about the labels. By the envelope theorem its gradient is that at the best W held
fixed, so W comes from a plain solver and no gradient passes through that. arXiv 2211.14946. Each row of logits is centered
first: a shift common to all classes, which says nothing, would else act as a feature of its own. Logits near 0 that separate the
classes score near log C too, as W is bounded: an adversary's head and rate that are learned close this gap, and accuracy must be
watched.
"""

import math

import torch
from torch import Tensor, nn

TOLERANCE = 1e-7
"""Largest move that a step of projected descent may still want to make."""
MOST = 5000
"""Steps of the solver, whatever the tolerance says."""


def calibrated(logits: Tensor, labels: Tensor) -> Tensor:
    """The calibrated loss of logits of shape (rows, classes), or its mean over stacks of them (..., rows, classes)."""
    centered = logits - logits.mean(-1, keepdim=True)
    mapped = centered @ best_map(centered.detach(), labels).to(logits.dtype)
    every = labels.expand(mapped.shape[:-1])
    return nn.functional.cross_entropy(mapped.flatten(0, -2), every.flatten())


@torch.no_grad()
def best_map(logits: Tensor, labels: Tensor, tolerance: float = TOLERANCE, most: int = MOST) -> Tensor:
    """The map in the box that leaves the least cross-entropy, by accelerated projected descent (FISTA) in double precision."""
    logits = logits.double()
    rows, classes = logits.shape[-2:]
    wanted = nn.functional.one_hot(labels, classes).double()
    turned = logits.transpose(-1, -2) / rows
    # Half the largest eigenvalue bounds the curvature: a softmax's Hessian is at most one half.
    curvature = 0.5 * torch.linalg.eigvalsh(turned @ logits)[..., -1:, None] + 1e-12
    best = ahead = logits.new_zeros(*logits.shape[:-2], classes, classes)
    momentum = 1.0
    for step in range(most):
        slope = turned @ ((logits @ ahead).softmax(-1) - wanted)
        moved = (ahead - slope / curvature).clamp(-1, 1)
        if step % 10 == 9 and bool(((moved - ahead).abs().amax() * curvature.amax()) < tolerance):
            return moved
        faster = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        best, ahead, momentum = moved, moved + (momentum - 1) / faster * (moved - best), faster
    return best


def doubt(classes: int, rows: int) -> str | None:
    """Why the loss means little for so many classes on so few rows, if it does: the map fits pure noise then."""
    if classes**2 <= rows / 2:
        return None
    return (
        f"{classes} classes have {classes**2} numbers in their map, fitted on {rows} rows: the calibrated loss would be low on "
        f"noise too; give {2 * classes**2} rows or more, or fewer classes"
    )
