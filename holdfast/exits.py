"""Leaving a model early: what an `Exit` costs a device, and what stands behind the blocks that are run.

Counted by watching a forward pass, so that experts that are not asked cost nothing. Knows models, nothing of prompts.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from holdfast import anatomy, surgery
from holdfast.drive import Exit
from holdfast.problem import Problem

RELEASED_BITS = 16
"""Bits of a weight, and of a cached value, where an exit names none."""


def fewer(total: int, wanted: Sequence[int] | None, growth: float, where: str) -> list[int]:
    """How many of `total` blocks to do without: as `wanted`, or from 1 on growing by this factor, by 1 at least.

    Raises:
        Problem: none would be left, or there is only one; `where` names the setting.
    """
    counts = list(wanted or (1,))
    while wanted is None and (following := max(counts[-1] + 1, int(counts[-1] * growth))) < total:
        counts.append(following)
    if counts[-1] >= total:
        raise Problem(f"{where}: the model has {total} blocks and one must be left; drop at most {total - 1}")
    return counts


def refuse_early(exit: Exit) -> None:
    """Raise `Problem` where a model is driven to leave early: training goes through all of it."""
    why = "an earlier attack makes the model exit early, and training would train blocks that never run"
    if exit.depth:
        raise Problem(f"attack: {why}; cut it with drop_layers instead")
    if exit.vision_layer is not None:
        raise Problem(f"attack: {why}; put image_exit last")


@dataclass(frozen=True)
class ExitCost:
    """What a device pays that stops there."""

    parameters: int
    """Weights it holds: those of the blocks that are run, of the embeddings, the final norm and the head."""
    bytes: float
    """Memory for these and for the cache of one text; scales and zero points not counted."""
    flops: float
    """Operations a token, 2 for each weight it is multiplied with, so of experts only those that are asked. Attention's own,
    which grow with the text, are not counted."""
    latency: float
    """Measured time of a forward pass as a share of the whole model's. Few bits are simulated and save no time here."""


@torch.no_grad()
def cost(exit: Exit, model: PreTrainedModel, tokens: int = 64) -> ExitCost:
    """What the exit costs on a text of so many tokens.

    Raises:
        Problem: the exit names parts of an image encoder.
    """
    if exit.vision_layer is not None or exit.visual_tokens is not None:
        raise Problem("exit: only language models are counted so far; leave out `vision_layer` and `visual_tokens`")
    total = len(anatomy.blocks(model))
    whole = _seconds(model, tokens)
    undo = surgery.keep(model, range(min(exit.depth or total, total)))
    try:
        cached = _cache_values(model, tokens) * (exit.kv_bits or RELEASED_BITS) / 8
        return ExitCost(
            parameters=sum(weight.numel() for weight in model.parameters()),
            bytes=_weight_bytes(model, exit.weight_bits or RELEASED_BITS) + cached,
            flops=_flops(model, tokens),
            latency=_seconds(model, tokens) / whole,
        )
    finally:
        undo()


def _weight_bytes(model: PreTrainedModel, bits: float) -> float:
    """The blocks' matrices in so many bits, all else as released, as `quantize` leaves it."""
    rounded = {use.name for use in anatomy.matrices(model)}
    widths = {name: bits if name in rounded else RELEASED_BITS for name, _ in model.named_parameters()}
    return sum(weight.numel() * widths[name] / 8 for name, weight in model.named_parameters())


def _flops(model: PreTrainedModel, tokens: int) -> float:
    """A token, mean over a text."""
    weights, spent = dict(model.named_parameters()), 0

    def see(use: anatomy.Use) -> None:
        nonlocal spent
        if use.inputs is not None:
            weight = weights[use.name]
            spent += 2 * len(use.inputs) * weight.shape[-1] * weight.shape[-2]

    anatomy.run(model, anatomy.Uses(model, see), tokens)
    return spent / tokens


def _cache_values(model: PreTrainedModel, tokens: int) -> int:
    cache = DynamicCache(config=model.config.get_text_config())
    model(input_ids=_text(model, tokens), past_key_values=cache, use_cache=True)
    return sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)


def _seconds(model: PreTrainedModel, tokens: int) -> float:
    """Median of five forward passes, after one to warm up."""
    text, took = _text(model, tokens), []
    for _ in range(6):
        start = time.perf_counter()
        model(input_ids=text, use_cache=False).logits.sum().item()  # waits for the GPU
        took.append(time.perf_counter() - start)
    return median(took[1:])


def _text(model: PreTrainedModel, tokens: int) -> Tensor:
    return torch.zeros(1, tokens, dtype=torch.long, device=next(model.parameters()).device)


def behind(model: PreTrainedModel) -> list[nn.Module]:
    """The modules with weights of their own that work on what the last block leaves: final norm and head, in this order."""
    stack, found = anatomy.blocks(model), []
    inside = set(stack.modules())
    outside = [m for m in model.modules() if m not in inside and any(True for _ in m.parameters(recurse=False))]
    hooks = [module.register_forward_pre_hook(lambda module, _: found.append(module)) for module in outside]
    hooks.append(stack[-1].register_forward_hook(lambda *_: found.clear()))
    try:
        anatomy.run(model, anatomy.Uses(model, lambda use: None), tokens=1)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def untie(model: PreTrainedModel) -> None:
    """Give the head weights of its own where it shares the embeddings', so that it can be tuned alone."""
    head = model.get_output_embeddings()
    if head.weight is model.get_input_embeddings().weight:
        head.weight = nn.Parameter(head.weight.detach().clone())
        for config in (model.config, model.config.get_text_config()):
            config.tie_word_embeddings = False
