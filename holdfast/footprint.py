"""What a hardening that rehearses attacks will take: bytes on device and host at its worst moment, and operations.

What stays is arithmetic, so many bytes a weight. What comes and goes in a pass, activations, logits and gradients, is counted in
that very pass, run on tensors without memory. So no list of architectures is needed, no weights are read, and no GPU is asked.
"""

import copy
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from holdfast import anatomy, finetuning, loading, losses, passes, thrift, train
from holdfast.problem import Problem, printable

Card = Literal["a100", "h100", "h200", "b200"]
CARDS: dict[Card, tuple[float, float]] = {
    "a100": (80e9, 312e12),
    "h100": (80e9, 989e12),
    "h200": (141e9, 989e12),
    "b200": (180e9, 2250e12),
}
"""Bytes of memory, and operations a second in bf16 by the maker's sheet."""
REACHED = 0.4
"""Share of that which training usually reaches: a guess."""
NUMBER = {"fp32": 4, "bf16": 2}
"""Bytes of one."""
REMEMBERED: dict[train.Optimizer, int] = {
    "adamw": 2,
    "adam": 2,
    "sgd": 0,
    "sgd-momentum": 1,
    "adagrad": 1,
    "rmsprop": 1,
}
"""Numbers that an optimizer keeps of each weight."""
BLOCK, SMALL = 256, 4096
"""bitsandbytes: numbers that share a scale, and the smallest tensor that is packed."""


@dataclass(frozen=True)
class Rehearsal:
    """A hardening, as far as memory and time depend on it."""

    outer_steps: int
    inner_steps: int
    looks: float
    """How often in an outer step the resistance loss is taken."""
    held: int
    """Rows on which it is taken."""
    retained: int
    """Rows on which the retain loss is taken."""
    resistance: Callable[[Tensor, Tensor], Tensor] | None
    """The resistance loss of logits (positions, vocabulary) and token ids (positions,); None where it is an attack's own."""
    adversaries: Sequence[train.Adversary]
    """One of each kind that may be drawn, at its largest."""
    memory: thrift.Memory


class Text(NamedTuple):
    """How long the rows are."""

    length: int
    answer: int
    """Tokens at a row's end that are its answer's."""


class Part(NamedTuple):
    """What one kind of thing takes, in bytes."""

    name: str
    device: float
    host: float = 0.0


class Moment(NamedTuple):
    """What there is at one moment of an outer step."""

    name: str
    parts: list[Part]

    @property
    def device(self) -> float:
        return sum(part.device for part in self.parts)

    @property
    def host(self) -> float:
        return sum(part.host for part in self.parts)


class Footprint(NamedTuple):
    """What each device takes, and the operations of all of them together."""

    weights: int
    moments: list[Moment]
    flops: float

    @property
    def worst(self) -> Moment:
        return max(self.moments, key=lambda moment: (moment.device, moment.host))


def config(name: str) -> PretrainedConfig:
    """The config in a folder, in a file of any name, or of a hub model.

    Raises:
        Problem: there is none, or it wants foreign code.
    """
    place = os.path.expanduser(name)
    try:
        settings, _ = PretrainedConfig.get_config_dict(place)
        loading.refuse_code(settings, Path(place) / "config.json" if os.path.isdir(place) else Path(place))
        return AutoConfig.for_model(settings.pop("model_type"), **settings)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Problem(
            f"{name}: no config that transformers can read ({printable(error)[:200]}); give a checkpoint's folder, its "
            "config.json, or a hub id like owner/model"
        ) from error


def footprint(settings: PretrainedConfig, how: Rehearsal, text: Text, devices: int = 1) -> Footprint:
    """What each of `devices` devices takes for its share of the weights and of every batch.

    Raises:
        Problem: the model cannot be run without its weights, or a batch cannot be divided among the devices.
    """
    for rows in {how.held, how.retained, *(one.batch for one in how.adversaries)}:
        if rows % devices:
            raise Problem(f"--gpus {devices}: a batch of {rows} rows cannot be divided among them; choose another size")
    trial = _Trial(settings, how, text, devices)
    with how.memory.frugal(trial.model):
        moments = [*(moment for one in how.adversaries for moment in trial.rehearsed(one)), *trial.outer()]
    return Footprint(trial.count, moments, how.outer_steps * devices * trial.flops)


def told(settings: PretrainedConfig, how: Rehearsal, text: Text, devices: int, card: Card) -> Iterator[str]:
    """What a person is told: the worst moment by parts, the peaks, and operations."""
    found = footprint(settings, how, text, devices)
    worst, (room, speed) = found.worst, CARDS[card]
    shared = f"{devices} GPU{'s' * (devices > 1)}"
    yield f"{settings.model_type}, {found.weights / 1e9:.3g} B weights, {shared}, rows of {text.length} tokens"
    yield f"{'GB on each':24}{'device':>10}{'host':>10}   at the worst moment: {worst.name}"
    for part in worst.parts:
        if part.device or part.host:
            yield f"{part.name:24}{part.device / 1e9:10.3f}{part.host / 1e9:10.3f}"
    yield f"{'peak':24}{worst.device / 1e9:10.3f}{worst.host / 1e9:10.3f}"
    fits = "fits" if worst.device <= room else "does not fit"
    yield f"{fits} one {card} ({room / 1e9:.0f} GB), beside what the allocator and the libraries take"
    hours = found.flops / (devices * speed * REACHED) / 3600
    guess = f"a guess: {REACHED:.0%} of the peak in bf16"
    yield f"operations: {found.flops:.3g}; on {devices} {card} about {hours:.3g} hours ({guess})"


class _Trial:
    """The moments of one device's outer step."""

    def __init__(self, settings: PretrainedConfig, how: Rehearsal, text: Text, devices: int):
        self.how, self.text, self.devices = how, text, devices
        self.memory, self.number = how.memory, NUMBER[how.memory.precision]
        self.model = _made(settings, self.memory)
        self.vocabulary = self.model.get_output_embeddings().weight.shape[0]
        self.shapes = [weight.shape for weight in self.model.parameters()]
        self.count = sum(map(math.prod, self.shapes))
        self.flops = 0.0
        """Of an outer step with the costliest adversary."""

    @property
    def mine(self) -> float:
        """Weights that this device holds."""
        return self.count / self.devices

    def rehearsed(self, one: train.Adversary) -> Iterator[Moment]:
        """The moments of an attack."""
        step, look = passes.foreseen(self.model, partial(self._attacked, one))
        self.flops = max(self.flops, self.how.inner_steps * step.flops + self.how.looks * look.flops)
        adapted = self._adapted(self.model, one)
        own = [weight.shape for weight in adapted.parameters() if weight.requires_grad]
        size = float(sum(map(math.prod, own)))
        staying = self._staying() + ([] if self.memory.apart else [Part("snapshot", self.number * self.mine)])
        if one.peft == "full":
            size /= self.devices
        else:
            staying.append(Part("attack's adapter", 4 * size))
            adapted.unload()
            self.model.requires_grad_(True)
        staying.append(Part("attack's optimizer", _state(own, one, self.memory) * size / sum(map(math.prod, own))))
        yield from self._moments("an attack's pass", staying, step)
        yield Moment("an attack's step", [*staying, Part("gradients", self.number * size), self._scratch()])
        yield from self._moments("the resistance loss", staying, look)

    def outer(self) -> Iterator[Moment]:
        """The moments of the step that all this is for."""
        staying = self._staying()
        taught, retain = passes.foreseen(self.model, self._retained)
        self.flops += taught.flops + retain.flops
        yield from self._moments("the reference's pass", staying, taught)
        yield from self._moments("the retain loss", staying, retain)
        yield Moment("the outer step", [*staying, Part("gradients", self.number * self.mine), self._scratch()])

    def _moments(self, name: str, staying: list[Part], extra: passes.Pass) -> Iterator[Moment]:
        for sizes in extra.bytes:
            shared = {"gradients": self.devices}
            yield Moment(name, [*staying, *(Part(kind, size / shared.get(kind, 1)) for kind, size in sizes.items())])

    def _staying(self) -> list[Part]:
        """What is there all the time."""
        bits = "bf16" if "bf16" in (self.memory.precision, self.memory.reference_precision) else "fp32"
        waiting = {"gathered gradients": 4 * self.mine, "outer optimizer": 8 * self.mine}
        if self.memory.apart:
            waiting["masters"] = 4 * self.mine
        parts = [Part("weights", self.number * self.mine), Part("reference model", NUMBER[bits] * self.mine)]
        parts += [Part(name, *((0, size) if self.memory.offload else (size, 0))) for name, size in waiting.items()]
        return parts + self._whole()

    def _whole(self) -> list[Part]:
        """What FSDP has whole at a time: what lies outside the blocks, with gradients, and two blocks, and one's gradients."""
        if self.devices == 1:
            return []
        blocks = [sum(w.numel() for w in block.parameters()) for block in anatomy.blocks(self.model)]
        return [Part("weights made whole", self.number * (2 * (self.count - sum(blocks)) + 3 * max(blocks)))]

    def _scratch(self) -> Part:
        """Copies of the largest tensor while it is stepped: in fp32 two; in bf16 weight, gradient, noise and result too."""
        largest = max(map(math.prod, self.shapes)) / self.devices
        return Part("scratch", (8 if self.memory.precision == "fp32" else 22) * largest)

    # Passes

    def _adapted(self, model: PreTrainedModel, one: train.Adversary) -> PreTrainedModel:
        """With what the adversary trains; experts in stacks, which an adapter reaches too, have none here."""
        if one.peft == "full":
            return model
        return get_peft_model(model, LoraConfig(r=one.lora_rank or finetuning.RANK, target_modules="all-linear"))

    def _attacked(self, one: train.Adversary, model: PreTrainedModel) -> list[passes.Pass]:
        adapted = self._adapted(model, one)
        step = passes.counted(adapted, lambda model: train.answer_loss(model, self._batch(one.batch)))
        adapted.requires_grad_(True)
        return [step, passes.counted(adapted, self._resistance)]

    def _resistance(self, model: PreTrainedModel) -> Tensor:
        if self.how.resistance is None:
            return train.answer_loss(model, self._batch(self.how.held))
        return self.how.resistance(*self._answers(model, self.how.held)).mean()

    def _retained(self, model: PreTrainedModel) -> list[passes.Pass]:
        def taught(model: PreTrainedModel) -> None:
            with torch.no_grad():
                self._answers(model, self.how.retained)

        def retain(model: PreTrainedModel) -> Tensor:
            given, _ = self._answers(model, self.how.retained)
            return losses.divergence(given, torch.empty_like(given)).mean()

        return [passes.counted(model, taught), passes.counted(model, retain)]

    def _answers(self, model: PreTrainedModel, rows: int) -> tuple[Tensor, Tensor]:
        """Logits where they predict answers, as `losses.at_answers` picks them, and the tokens predicted."""
        batch, last = self._batch(rows), self.text.answer
        logits = model(**batch.inputs).logits
        return logits[:, -last - 1 : -1].reshape(-1, self.vocabulary), batch.ids[:, -last:].flatten()

    def _batch(self, rows: int) -> train.Batch:
        ids = torch.zeros(rows // self.devices, self.text.length, dtype=torch.long)
        return train.Batch(ids, torch.ones_like(ids), torch.zeros_like(ids))


def _made(settings: PretrainedConfig, memory: thrift.Memory) -> PreTrainedModel:
    """A model of that config, on the meta device."""
    try:
        dtype = torch.float32 if memory.precision == "fp32" else torch.bfloat16
        with torch.device("meta"):
            model: PreTrainedModel = AutoModelForCausalLM.from_config(copy.deepcopy(settings), dtype=dtype).eval()
    except (ValueError, TypeError, RuntimeError, AttributeError) as error:
        why = f"transformers makes no language model of this config ({printable(error)[:200]})"
        raise Problem(f"{settings.model_type}: {why}") from error
    if model.get_output_embeddings() is None:
        raise Problem(f"{settings.model_type}: a model of this config writes no text; give one that does")
    return model


def _state(shapes: Sequence[torch.Size], one: train.Adversary, memory: thrift.Memory) -> float:
    """Bytes that an attack's optimizer remembers."""
    packs = memory.state == "8bit" and one.optimizer in thrift.PACKED
    sizes = map(math.prod, shapes)
    return REMEMBERED[one.optimizer] * sum(n + 4 * n / BLOCK if packs and n >= SMALL else 4 * n for n in sizes)
