"""Proximal policy optimization on answers: advantages, clipped losses, and means over the tokens that were said.

Clip-PPO (1707.06347) with generalized advantage estimation (1506.02438), as it is used on language models: a token is an action,
an answer an episode. Every tensor has shape (answers, longest) and is padded behind an answer's end; a mask is 1 for its tokens.
Knows tensors, no models.
"""

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from holdfast import losses


def dense(flat: Tensor, labels: Tensor) -> Tensor:
    """Numbers in the order of `losses.at_answers`, a row an answer and zeros behind."""
    return pad_sequence(list(flat.split(losses.answered(labels).sum(-1).tolist())), batch_first=True)


def said(labels: Tensor) -> Tensor:
    """The mask of the answers in labels (rows, width)."""
    tokens = losses.answered(labels)
    return dense(torch.ones_like(tokens[tokens], dtype=torch.float), labels)


def mean(values: Tensor, mask: Tensor) -> Tensor:
    """Over all answers' tokens."""
    return (values * mask).sum() / mask.sum()


def whitened(values: Tensor, mask: Tensor) -> Tensor:
    """With mean 0 and variance 1 over all answers' tokens; 0 behind the answers."""
    middle = mean(values, mask)
    spread = mean((values - middle) ** 2, mask).sqrt()
    return (values - middle) / (spread + 1e-8) * mask


def advantages(gains: Tensor, values: Tensor, mask: Tensor, gamma: float, trace: float) -> Tensor:
    """Generalized advantages of what each token gained; with `gamma` and `trace` 1, all that is still gained less the value."""
    found, ahead, following = torch.zeros_like(gains), torch.zeros_like(gains[:, 0]), torch.zeros_like(gains[:, 0])
    for token in reversed(range(gains.shape[1])):
        here = mask[:, token]
        surprise = gains[:, token] + gamma * following - values[:, token]
        ahead = (surprise + gamma * trace * ahead) * here
        found[:, token], following = ahead, values[:, token] * here
    return found


def policy_loss(logprobs: Tensor, before: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """A number a token: the worse of the ratio's gain and the clipped ratio's."""
    ratio = (logprobs - before).exp()
    return torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip))


def value_loss(values: Tensor, before: Tensor, returns: Tensor, clip: float) -> Tensor:
    """A number a token: half the squared error, of the value or of one that moved no farther than `clip`, the larger."""
    near = before + (values - before).clamp(-clip, clip)
    return torch.maximum((values - returns) ** 2, (near - returns) ** 2) / 2
