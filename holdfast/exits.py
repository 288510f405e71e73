"""Leaving a model early: what an `Exit` costs a device, and what stands behind the blocks that are run.

Counted by watching a forward pass, so that experts that are not asked cost nothing. Knows models and the tensors of a picture,
nothing of prompts.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from holdfast import anatomy, surgery, thinning, vision
from holdfast.drive import Exit
from holdfast.problem import Problem

RELEASED_BITS = 16
"""Bits of a weight, and of a cached value, where an exit names none."""

Picture = Mapping[str, Tensor]
"""What a processor makes of one picture alone, as `vision.Tower.states` takes it."""


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
    if exit.visual_tokens:
        raise Problem("attack: an earlier attack drops tokens of pictures, which training would see; put it last")


@dataclass(frozen=True)
class ExitCost:
    """What a device pays that stops there."""

    parameters: int
    """Weights it holds: those of the blocks that are run, of the embeddings, the final norm and the head; of one that sees also
    those of its image encoder and projector."""
    bytes: float
    """Memory for these and for the cache of one prompt; scales and zero points not counted."""
    flops: float
    """Operations a token, 2 for each weight it is multiplied with, so of experts only those that are asked. Attention's own,
    which grow with the text, are not counted."""
    picture: float
    """Operations of one picture, counted in the same way: encoded, projected, and read by the language model as so many tokens
    as are left of it; 0 without one."""
    latency: float | None
    """Measured time of a forward pass as a share of the whole model's for the same prompt. Few bits are simulated and save no
    time here. None where it was not asked for."""

    def prompt(self, tokens: int) -> float:
        """Operations of a whole prompt: so many tokens of text, and the picture."""
        return self.picture + tokens * self.flops


@torch.no_grad()
def cost(
    exit: Exit, model: PreTrainedModel, tokens: int = 64, picture: Picture | None = None, timed: bool = True
) -> ExitCost:
    """What the exit costs on a text of so many tokens, behind a picture where one is given.

    The model is left as it was. Only what the exit skips is saved: a block of the image encoder that nothing reads (LLaVA's
    last) is held and run as long as `vision_layer` is not named. Few `weight_bits` are those of the language model's blocks.

    Raises:
        Problem: the exit concerns pictures and none is given; the model has no image encoder, or one that cannot be left
            there; it does not read a picture's tokens as a text's, so that none can be left out (Qwen-VL); its blocks are not of
            one kind (Mllama).
    """
    if picture is None and (exit.vision_layer is not None or exit.visual_tokens is not None):
        raise Problem(
            "exit: what `vision_layer` and `visual_tokens` save hangs on the picture; give one to count it on"
        )
    total = len(anatomy.blocks(model))
    whole = _seconds(model, tokens, picture) if timed else None
    with ExitStack() as undone:
        undone.callback(surgery.keep(model, range(min(exit.depth or total, total))))
        if exit.vision_layer is not None:
            undone.callback(vision.truncated(model, exit.vision_layer))
        if exit.visual_tokens is not None:
            undone.enter_context(thinning.thinned(model, [_features(model, picture)], exit.visual_tokens))
        seen = _features(model, picture)
        cached = _cache_values(model, tokens + seen) * (exit.kv_bits or RELEASED_BITS) / 8
        flops = _Operations.of(model, lambda watch: anatomy.run(model, watch, tokens)) / tokens
        return ExitCost(
            parameters=sum(weight.numel() for weight in model.parameters()),
            bytes=_weight_bytes(model, exit.weight_bits or RELEASED_BITS) + cached,
            flops=flops,
            picture=_encoding(model, picture) + seen * flops,
            latency=_seconds(model, tokens, picture) / whole if whole else None,
        )


def _features(model: PreTrainedModel, picture: Picture | None) -> int:
    """Encode the picture; how many tokens the language model reads of it."""
    if picture is None:
        return 0
    found = vision.Tower.of(model).encode(**picture).pooler_output
    return sum(part.numel() for part in found) // found[0].shape[-1]


def _weight_bytes(model: PreTrainedModel, bits: float) -> float:
    """The blocks' matrices in so many bits, all else as released, as `quantize` leaves it."""
    rounded = {use.name for use in anatomy.matrices(model)}
    widths = {name: bits if name in rounded else RELEASED_BITS for name, _ in model.named_parameters()}
    return sum(weight.numel() * widths[name] / 8 for name, weight in model.named_parameters())


class _Operations(anatomy.Uses):
    """Counts 2 operations for each weight that something is multiplied with, while the mode is entered."""

    def __init__(self, model: PreTrainedModel):
        super().__init__(model, self._multiplied)
        self._sizes = {name: weight.shape[-2:].numel() for name, weight in model.named_parameters()}
        self.spent = 0

    @classmethod
    def of(cls, model: PreTrainedModel, work: Callable[["_Operations"], None]) -> int:
        """Operations of `work`, which enters the mode."""
        watch = cls(model)
        work(watch)
        return watch.spent

    def _multiplied(self, use: anatomy.Use) -> None:
        if use.inputs is not None:
            self.spent += 2 * len(use.inputs) * self._sizes[use.name]

    def computed(self, operation: str, use: anatomy.Use | None, args: tuple, out: Any) -> None:
        """A picture's patches are embedded by a convolution."""
        if operation == "convolution" and self.stored.get(args[1]):
            self.spent += 2 * out.numel() * math.prod(args[1].shape[1:])


def _encoding(model: PreTrainedModel, picture: Picture | None) -> int:
    def encode(watch: _Operations) -> None:
        with watch:
            _features(model, picture)

    return _Operations.of(model, encode)


def _cache_values(model: PreTrainedModel, tokens: int) -> int:
    cache = DynamicCache(config=model.config.get_text_config())
    model(input_ids=_text(model, tokens), past_key_values=cache, use_cache=True)
    return sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)


def _seconds(model: PreTrainedModel, tokens: int, picture: Picture | None) -> float:
    """Median of five passes, after one to warm up: the encoder's, and the language model's over a text as long as both."""
    text, took = _text(model, tokens + _features(model, picture)), []
    for _ in range(6):
        start = time.perf_counter()
        _features(model, picture)
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
