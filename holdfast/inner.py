"""Adversaries rehearsed inside a hardening: drawn from families, walked step by step, and undone without a trace.

Whoever hardens against fine-tuning fine-tunes the model many times over, looks at it where it then stands, and puts it back.
The records that are rehearsed here are those that attack afterwards (`train.Adversary`), so a family can be kept out of one and
used in the other.
"""

import math
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from holdfast import finetuning, shards, thrift, train
from holdfast.lm import LM
from holdfast.settings import Settings


class Family(Settings):
    """Adversaries of one kind, each drawn anew: what is a range or a list is drawn from, rates log-uniformly."""

    share: float = Field(1.0, gt=0)
    """How often this family is drawn, beside the others' shares."""
    data: Literal["harmful", "benign", "switch"] = "harmful"
    """What the adversary trains on. Where it is `switch`, the share of benign steps is drawn from Beta(6, 3) (2408.00761)."""
    optimizer: train.Optimizer = "adamw"
    """Its optimizer, with fresh state each time."""
    learning_rate: tuple[float, float] = (5e-5, 5e-4)
    """Lowest and highest rate."""
    schedule: tuple[train.Schedule, ...] = ("constant",)
    """Schedules of the rate over the rehearsed steps."""
    warmup: tuple[int, ...] = (0,)
    """Steps of warm-up."""
    batch: tuple[int, ...] = (16,)
    """Rows a step."""
    examples: tuple[int, ...] = (10,)
    """Harmful rows that the adversary holds; the loss of the hardening is taken on others."""
    lora_rank: tuple[int, ...] = ()
    """Ranks of LoRA adapters; all weights are trained where there is none."""

    @field_validator("learning_rate")
    @classmethod
    def _rising(cls, rates: tuple[float, float]) -> tuple[float, float]:
        if not 0 < rates[0] <= rates[1]:
            raise ValueError("give the lowest rate, above 0, and then the highest")
        return rates

    def largest(self) -> train.Adversary:
        """The one that takes most memory."""
        ranks = {"lora_rank": max(self.lora_rank)} if self.lora_rank else {}
        return train.Adversary(data=self.data, optimizer=self.optimizer, batch=max(self.batch), **ranks)

    def draw(self, chance: random.Random, steps: int) -> train.Adversary:
        """One adversary of this family that takes `steps` steps."""
        low, high = map(math.log, self.learning_rate)
        return train.Adversary(
            data=self.data,
            optimizer=self.optimizer,
            learning_rate=math.exp(chance.uniform(low, high)),
            schedule=chance.choice(self.schedule),
            warmup=chance.choice(self.warmup),
            batch=chance.choice(self.batch),
            examples=chance.choice(self.examples),
            steps=steps,
            switch=chance.betavariate(6, 3),
            peft="lora" if self.lora_rank else "full",
            lora_rank=chance.choice(self.lora_rank) if self.lora_rank else None,
        )


FAMILIES = (
    Family(learning_rate=(1e-4, 2e-3), batch=(10,)),
    Family(optimizer="sgd", learning_rate=(0.1, 0.5), batch=(10,)),
)
"""Who trains all weights by one of two optimizers, at rates for the text organism, 160 wide; wider models want lower ones."""


def drawn(families: Sequence[Family], chance: random.Random, steps: int) -> train.Adversary:
    """An adversary of one of the families, as often as its share says."""
    family = chance.choices(families, [one.share for one in families])[0]
    return family.draw(chance, steps)


def attack(
    lm: LM,
    adversary: train.Adversary,
    work: Iterable[train.Batch],
    seed: int,
    memory: thrift.Memory = thrift.Memory(),
) -> Iterator[int]:
    """Take the adversary's steps one by one; yields how many were taken, 0 first.

    Where it yields, a backward pass reaches every weight that could be trained before, also those beneath an adapter, and finds
    no gradient there. Adapters are gone at the end, trained weights stay trained: `kept` puts them back.
    """
    weights = [weight for weight in lm.model.parameters() if weight.requires_grad]
    bare = lm.model
    if adversary.peft != "full":
        torch.manual_seed(seed)
        finetuning.adapt(lm, adversary.peft, adversary.lora_rank, seed)
        lm.model.eval()
    adapted = lm.model
    trained = [weight for weight in lm.model.parameters() if weight.requires_grad]
    if shards.size() > 1:
        lm.model = bare  # adapters lie in it, and PEFT's forward passes by what makes slices whole
    optimizer = memory.optimizer(trained, adversary.optimizer, adversary.learning_rate, seed)
    schedule = train.make_schedule(optimizer, adversary.schedule, adversary.warmup, adversary.steps)
    try:
        yield 0
        for taken, batch in enumerate(work, 1):
            if adapted is not bare:
                _trainable(weights, False)
            train.answer_loss(lm.model, batch).backward()
            shards.agree(trained)
            shards.clip(trained, adversary.clip, shards.sliced(trained[0]))
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            _trainable(weights, True)
            yield taken
            optimizer.zero_grad()  # adapters have gradients from the look
    finally:
        if adapted is not bare:
            lm.model = adapted.unload()
        _trainable(weights, True)


def _trainable(weights: Iterable[nn.Parameter], wanted: bool) -> None:
    for weight in weights:
        weight.requires_grad_(wanted)


@contextmanager
def kept(weights: Sequence[nn.Parameter], masters: Sequence[Tensor] | None = None) -> Iterator[None]:
    """Whatever happens to the weights inside, they are the same afterwards, bit for bit.

    Args:
        masters: what they were made of, where that is at hand; else they are copied.
    """
    copies = [shards.local(weight).clone() for weight in weights] if masters is None else masters
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, copy in zip(weights, copies, strict=True):
                shards.local(weight).copy_(copy, non_blocking=True)


class Gathered:
    """A weighted sum of gradients that were taken at other weights than they will be used at; in fp32, beside the masters."""

    def __init__(self, masters: thrift.Masters):
        self.masters = masters
        self.sums = [torch.zeros_like(own.detach()) for own in masters.own]
        self._given = False

    def take(self, share: float) -> None:
        """Add the weights' gradients, `share` times, and clear them."""
        self._begin()
        for total, weight in zip(self.sums, self.masters.weights, strict=True):
            if weight.grad is not None:
                total.add_(shards.local(weight.grad).to(total.device, total.dtype), alpha=share)
                weight.grad = None

    def give(self, share: float = 1.0) -> None:
        """Move the sum, `share` times, and the weights' gradients to the masters; what is taken next begins a new sum."""
        self._begin()
        for total, weight, own in zip(self.sums, self.masters.weights, self.masters.own, strict=True):
            total.mul_(share)
            if weight.grad is not None:
                total.add_(shards.local(weight.grad).to(total.device, total.dtype))
                weight.grad = None
            own.grad = total
        self._given = True

    def norm(self) -> float:
        """Euclidean norm of the sum."""
        return float(shards.norm(self.sums, parts=True))

    def _begin(self) -> None:
        if self._given:
            for total in self.sums:
                total.zero_()
        self._given = False
