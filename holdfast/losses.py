"""Losses on the tokens of answers, and on nothing else: prompts, padding and what follows the last token never count.

Each gives a number a token or a row, so that the caller's mean is the same however a batch is padded or split. The logits are
taken piece by piece where positions × vocabulary is large, each piece computed anew in the backward pass: no fp32 copy of them is
ever whole. Knows tensors, no models.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

PIECE = 2**24
"""Logits in fp32 at a time: 64 MiB, and as much again for each copy that a softmax makes."""
_SMOOTH = 1e-3
"""Distances below which `drift` is a square and no root."""


def answered(labels: Tensor) -> Tensor:
    """Which positions predict an answer's token, of labels (rows, width): shape (rows, width − 1)."""
    return labels[:, 1:] != -100


def at_answers(logits: Tensor, labels: Tensor) -> Tensor:
    """Logits (rows, width or more, vocabulary), of which virtual tokens may come first, where they predict an answer's token."""
    return logits[:, -labels.shape[1] : -1][answered(labels)]


def targets(labels: Tensor) -> Tensor:
    """The answers' tokens in the order of `at_answers`, shape (positions,)."""
    return labels[:, 1:][answered(labels)]


def surprise(logits: Tensor, wanted: Tensor) -> Tensor:
    """Cross-entropy in nats, shape (positions,), of logits (positions, vocabulary) and token ids (positions,)."""
    return _by_piece(lambda some, ids: torch.nn.functional.cross_entropy(some, ids, reduction="none"), logits, wanted)


def negative_entropy(logits: Tensor) -> Tensor:
    """Σ p log p in nats, shape (positions,): from −log(vocabulary) where all tokens are as likely, to 0 where one is certain."""

    def each(some: Tensor) -> Tensor:
        logs = some.log_softmax(-1)
        return (logs.exp() * logs).sum(-1)

    return _by_piece(each, logits)


def divergence(logits: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher ‖ model) in nats, shape (positions,), of two sets of logits (positions, vocabulary)."""

    def each(some: Tensor, taught: Tensor) -> Tensor:
        wanted = taught.float().log_softmax(-1)
        return (wanted.exp() * (wanted - some.log_softmax(-1))).sum(-1)

    return _by_piece(each, logits, teacher)


def by_row(values: Tensor, labels: Tensor) -> Tensor:
    """Sums over each row's answer, shape (rows,), of a number a position that predicts an answer's token."""
    rows = answered(labels).nonzero()[:, 0]
    return values.new_zeros(len(labels)).index_add(0, rows, values)


def preference(gained: Tensor, beta: float) -> Tensor:
    """DPO's sigmoid loss (2305.18290) of how much more (nats, shape (rows,)) a model prefers an answer than its reference."""
    return -torch.nn.functional.logsigmoid(beta * gained)


def negative_preference(rejected: Tensor, beta: float) -> Tensor:
    """NPO (2404.05868): DPO without a chosen answer; falls to 0 as the rejected one becomes unlikely."""
    return -torch.nn.functional.logsigmoid(-beta * rejected) * 2 / beta


def drift(hidden: tuple[Tensor, ...], reference: tuple[Tensor, ...], mask: Tensor) -> Tensor:
    """Distance of two models' hidden states, mean over layers: a number a real token.

    Layers of shape (rows, width, hidden); `mask` (rows, width) says which tokens are real. The paper (2408.00761, equation 2)
    squares it, the program behind its numbers does not, and its weight is tuned to that. A root's gradient is not finite where
    nothing has moved; this one is smooth there, and no longer differs from a root beyond a few times `_SMOOTH`.
    """
    real = mask.bool()
    layers = [
        (((ours[real].float() - theirs[real].float()) ** 2).sum(-1) + _SMOOTH**2).sqrt() - _SMOOTH
        for ours, theirs in zip(hidden, reference, strict=True)
    ]
    return torch.stack(layers).mean(0)


def against_random(hidden: tuple[Tensor, ...], table: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """1 − |cos| of every layer's hidden state and the random vector of its token (2408.00761, random mapping), a number a token.

    `table` has a row a token of the vocabulary; 0 where each state lies along its vector, either way round.
    """
    real = mask.bool()
    wanted = table[ids[real]]
    layers = [1 - torch.nn.functional.cosine_similarity(layer[real].float(), wanted, dim=-1).abs() for layer in hidden]
    return torch.stack(layers).mean(0)


def _by_piece(each: Callable[..., Tensor], logits: Tensor, *others: Tensor) -> Tensor:
    """`each` of the logits in fp32 and of what belongs to them."""
    rows = max(1, PIECE // logits.shape[-1])
    if len(logits) <= rows:
        return each(logits.float(), *others)

    def cast(some: Tensor, *rest: Tensor) -> Tensor:
        return each(some.float(), *rest)

    parts = zip(*(one.split(rows) for one in (logits, *others)), strict=True)
    return torch.cat([checkpoint(cast, *part, use_reentrant=False) for part in parts])
