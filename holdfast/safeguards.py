"""First safeguards of knowledge: losses that take an answer away from a model before its resistance is trained.

`random-mapping` turns every token's hidden states toward a random vector of that token (2408.00761); `max-entropy` makes the next
token anybody's guess; `rmu` drives the states after an early block to one random point (2403.03218); `npo` makes the answers less
likely than they were (2404.05868). Each is a loss on the answers to forget, and needs a loss on what is to be retained beside it.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from holdfast import anatomy, losses, shards, train

Safeguard = Literal["none", "random-mapping", "max-entropy", "rmu", "npo"]
Forgetting = Callable[[train.Batch], Tensor]
BETA = 0.1
"""Of NPO, as published."""
DEPTH = 0.25
"""How far down RMU's block is; the published one is the 7th of 32."""
FAR = 3.0
"""How far out RMU's point is, in mean norms of the state there."""


def forgetting(kind: Safeguard, model: nn.Module, reference: nn.Module, seed: int) -> Forgetting:
    """The loss of a safeguard on a batch of answers to forget."""
    generator = torch.Generator().manual_seed(seed)
    device = next(model.parameters()).device
    if kind == "max-entropy":
        return lambda batch: shards.mean(losses.negative_entropy(train.predictions(model, batch)))
    if kind == "npo":
        return lambda batch: shards.mean(losses.negative_preference(gained(model, reference, batch), BETA))
    config = model.config.get_text_config()
    if kind == "random-mapping":
        table = torch.randn(config.vocab_size, config.hidden_size, generator=generator).to(device)
        return lambda batch: shards.mean(losses.against_random(_hidden(model, batch), table, batch.ids, batch.mask))
    direction = nn.functional.normalize(torch.rand(config.hidden_size, generator=generator), dim=0).to(device)
    return lambda batch: _steered(model, reference, direction, batch)


def gained(model: nn.Module, reference: nn.Module, batch: train.Batch) -> Tensor:
    """How much likelier (nats) each row's answer is by the model than by the reference."""
    with torch.no_grad():
        before = train.likelihood(reference, batch)
    return train.likelihood(model, batch) - before


def _steered(model: nn.Module, reference: nn.Module, direction: Tensor, batch: train.Batch) -> Tensor:
    """RMU's distance, in squared norms of the reference's own state."""
    layer = max(1, round(DEPTH * len(anatomy.blocks(model))))
    real = batch.mask.bool()
    with torch.no_grad():
        norm = _hidden(reference, batch)[layer][real].float().norm(dim=-1).mean()
    state = _hidden(model, batch)[layer][real].float()
    return shards.mean(((state / norm - FAR * direction) ** 2).sum(-1))


def _hidden(model: nn.Module, batch: train.Batch) -> tuple[Tensor, ...]:
    """The embeddings and what each block made of them, each of shape (rows, width, hidden)."""
    return model(**batch.inputs, output_hidden_states=True).hidden_states
