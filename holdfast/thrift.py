"""What a hardening may give up for memory: bits, and what lies on the device.

Small steps in bf16 must not be lost: rounded to nearest, a weight of 0.02 stands still at rates below 4e-5. So steps are made in
fp32, one tensor at a time, and rounded by chance, up or down as often as keeps the mean.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recomputed
from transformers import PreTrainedModel

from holdfast import anatomy, shards, train
from holdfast.problem import Problem
from holdfast.settings import Settings

PACKED = ("adamw", "adam")
"""Optimizers whose state bitsandbytes keeps in 8 bits."""


class Memory(Settings):
    """What is given up for memory; with the defaults nothing is."""

    precision: Literal["fp32", "bf16"] = "fp32"
    """Of weights, gradients and reference model on the device. `bf16` keeps fp32 masters for the outer optimizer, and rounds the
    steps of rehearsed attacks by chance, so that small ones are not lost."""
    state: Literal["fp32", "8bit"] = "fp32"
    """Of the rehearsed attacks' optimizers: `8bit` packs that of adamw and adam (bitsandbytes). Plain sgd has none."""
    reference_precision: Literal["fp32", "bf16"] = "fp32"
    """Of the reference model alone."""
    offload: bool = False
    """Masters, gathered gradients and the outer optimizer lie in the host's memory, pinned, and the outer step is made there."""
    checkpointing: bool = False
    """Compute activations anew in the backward pass (gradient checkpointing)."""

    @property
    def apart(self) -> bool:
        """Whether the outer optimizer has masters apart from the weights."""
        return self.offload or self.precision == "bf16"

    def optimizer(
        self, weights: Sequence[nn.Parameter], name: train.Optimizer, learning_rate: float, seed: int
    ) -> torch.optim.Optimizer:
        """The named optimizer for a rehearsed attack, whatever the weights' type."""
        packs = self.state == "8bit" and name in PACKED
        if not packs and all(weight.dtype == torch.float32 for weight in weights):
            return train.make_optimizer(weights, name, learning_rate)
        return Rounding(weights, name, learning_rate, packs, seed)

    def reference(self, model: PreTrainedModel) -> PreTrainedModel:
        """A copy of the model that never changes."""
        copied = copy.deepcopy(model).eval().requires_grad_(False)
        copied.config.get_text_config().use_cache = False
        if "bf16" in (self.precision, self.reference_precision):
            cast(copied, torch.bfloat16)
        shards.spread(copied)
        return copied

    @contextmanager
    def frugal(self, model: PreTrainedModel) -> Iterator[None]:
        """Inside, a forward pass keeps no keys and values for later, and of each block only what went in if so asked."""
        config = model.config.get_text_config()
        cached, config.use_cache = config.use_cache, False
        stack = anatomy.blocks(model) if self.checkpointing else []
        for block in stack:
            # transformers' own checkpointing works in training mode alone, in which there is dropout
            block.forward = partial(recomputed, block.forward, use_reentrant=False, preserve_rng_state=False)
        try:
            yield
        finally:
            for block in stack:
                del block.forward
            config.use_cache = cached


class Masters:
    """Weights as an optimizer moves them: themselves, or copies in fp32, on the host if so asked."""

    def __init__(self, weights: Sequence[nn.Parameter], memory: Memory):
        self.weights = weights
        self.lower = memory.precision == "bf16"
        self.apart = memory.apart
        """Whether they are copies."""
        self.own = [self._own(weight, memory.offload) for weight in weights]

    @property
    def copies(self) -> list[nn.Parameter] | None:
        """What the weights were made of, where that lies apart."""
        return self.own if self.apart else None

    def _own(self, weight: nn.Parameter, offload: bool) -> nn.Parameter:
        here = shards.local(weight)
        if offload:
            pinned = torch.empty_like(here, device="cpu", pin_memory=here.is_cuda)
            return nn.Parameter(pinned.copy_(here))
        if self.apart:
            return nn.Parameter(here.clone())
        return nn.Parameter(here) if shards.sliced(weight) else weight

    @contextmanager
    def lowered(self, model: nn.Module) -> Iterator[None]:
        """Inside, the model computes with as few bits as asked; afterwards it has the masters' own."""
        if self.lower:
            cast(model, torch.bfloat16)
        try:
            yield
        finally:
            if self.lower:
                cast(model, torch.float32)
            self.give()

    @torch.no_grad()
    def give(self) -> None:
        """Have the weights be what the masters are."""
        if self.apart:
            for weight, own in zip(self.weights, self.own, strict=True):
                shards.local(weight).copy_(own, non_blocking=True)

    def take(self) -> None:
        """Move the weights' gradients to the masters."""
        for weight, own in zip(self.weights, self.own, strict=True):
            if own is not weight and weight.grad is not None:
                own.grad = shards.local(weight.grad).to(own.device, own.dtype)
                weight.grad = None


class Rounding(torch.optim.Optimizer):
    """Any optimizer on weights of few bits: each tensor's step is made in fp32 and then rounded by chance."""

    def __init__(
        self, weights: Sequence[nn.Parameter], name: train.Optimizer, learning_rate: float, packs: bool, seed: int
    ):
        super().__init__(weights, {"lr": learning_rate})
        self._weights = weights
        self._chance = torch.Generator(weights[0].device).manual_seed(seed + shards.rank())
        self._masters = [nn.Parameter(torch.empty(0)) for _ in weights]
        pairs = zip(self._masters, weights, strict=True)
        self._steps = [_stepping(master, weight, name, packs) for master, weight in pairs]

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for weight, master, one in zip(self._weights, self._masters, self._steps, strict=True):
            if weight.grad is None:
                continue
            here = shards.local(weight)
            master.data = here.float()
            master.grad = shards.local(weight.grad).float()
            one.param_groups[0]["lr"] = self.param_groups[0]["lr"]
            one.step()
            here.copy_(by_chance(master.data, here.dtype, self._chance))
            master.grad, master.data = None, torch.empty(0)


def _stepping(master: nn.Parameter, weight: nn.Parameter, name: train.Optimizer, packs: bool) -> torch.optim.Optimizer:
    """An optimizer of one tensor, which is not there between its steps."""
    master.data = shards.local(weight).float()  # some make their state at once, in its shape
    made = _packed()([master], weight_decay=0.0) if packs else train.make_optimizer([master], name, 0.0)
    master.data = torch.empty(0)
    return made


def cast(model: nn.Module, dtype: torch.dtype) -> None:
    """The weights in another type; buffers stay, because positions need their bits."""
    buffers = [(buffer, buffer.data) for buffer in model.buffers()]
    model.to(dtype)
    for buffer, before in buffers:
        buffer.data = before


def by_chance(values: Tensor, dtype: torch.dtype, chance: torch.Generator) -> Tensor:
    """fp32 values in `dtype`, in bf16 each rounded up as often as it lies near the upper neighbor, so that their mean stays."""
    if dtype != torch.bfloat16:
        return values.to(dtype)
    noise = torch.randint(2**16, values.shape, dtype=torch.int32, device=values.device, generator=chance)
    return noise.add_(values.view(torch.int32)).bitwise_and_(-(2**16)).view(torch.float32).to(dtype)


def _packed() -> Any:
    """bitsandbytes' AdamW with a state of 8 bits; without decay it is Adam too."""
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise Problem("memory.state 8bit: needs bitsandbytes; run: pip install 'holdfast[quantize]'") from error
    return AdamW8bit
