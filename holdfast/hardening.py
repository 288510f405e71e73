"""What defenses that train share: their settings, what the defender's hand yields to train on, and steps that end in clear words.

Each defense's own file shows its loop and its losses. The model computes in evaluation mode throughout, because these losses
compare passes over one batch, and dropout would make them differ by chance. Knows models and hands, no defense in particular.
"""

import hashlib
import math
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from peft import PeftModel
from pydantic import Field, model_validator
from torch import Tensor, nn

from holdfast import finetuning, moved, resume, selftaught, shards, thrift, train
from holdfast.corpus import Hand, Row
from holdfast.lm import LM
from holdfast.method import Log
from holdfast.problem import Problem
from holdfast.settings import Settings, as_published

CLIP = 1.0
"""Largest gradient norm."""
TOLD = 10
"""How often a defense says where it is."""
SAVED_EVERY = 120.0
"""Seconds after which a defense saves where it is."""


class Lessons(NamedTuple):
    """The defender's prompts with answers; only the harmful ones come from the corpus."""

    harmful: list[Row]
    """Restricted prompts with the answers that nobody should get."""
    refusals: list[Row]
    """Prompts with the refusals that the model gives to them."""
    answers: list[Row]
    """Other prompts with the answers that the model gives to them."""

    @property
    def kept(self) -> list[Row]:
        """Everything that the hardened model should say as before."""
        return self.refusals + self.answers


class Training(Settings):
    """How a defense trains."""

    steps: int = Field(100, gt=0)
    """Optimizer steps."""
    batch: int = Field(16, gt=0)
    """Rows of each kind a step."""
    learning_rate: float = Field(1e-4, gt=0)
    """Of AdamW, at its highest."""
    schedule: train.Schedule = "cosine"
    """How the rate goes on."""
    warmup: int = Field(0, ge=0)
    """Steps of linear rise before that."""
    weight_decay: float = Field(0.0, ge=0)
    """Share of every weight, times the rate, taken away at each step."""
    lora_rank: int | None = Field(None, gt=0)
    """Train an adapter of this rank on every linear layer (alpha twice the rank) and merge it at the end; else all weights."""
    varied: int = Field(400, ge=0)
    """Prompts made from the defender's by replacing a word, with what the model says to them: few prompts keep little."""
    seed: int = 0
    """Of the rows' order and of all other chance."""

    @property
    def name(self) -> str:
        """The file's, as everywhere."""
        return type(self).__module__.rpartition(".")[2]

    @property
    def total(self) -> int:
        """Optimizer steps in all, where the settings make it another number than `steps`."""
        return self.steps

    def lessons(self, lm: LM, hand: Hand | None) -> Lessons:
        """What the hand yields, with what `lm` says now.

        Raises:
            Problem: no hand, no harmful answer in it, or a model that refuses all of its prompts or none.
        """
        restricted = self._hand(hand).need("restricted", split="train")
        harmful = [row for row in restricted if row.answer and row.variant is None]
        if not harmful:
            raise Problem(
                f"{self.name}: no restricted prompt of the defender's has a harmful answer; add some to the corpus"
            )
        return Lessons(harmful, *self.own(lm, hand))

    def own(self, lm: LM, hand: Hand | None) -> selftaught.Said:
        """The restricted prompts that `lm` refuses, and the others that it answers, with what it says to each now.

        Raises:
            Problem: no hand, or a model that refuses all of its prompts or none.
        """
        hand = self._hand(hand)
        restricted, others = hand.need("restricted", split="train"), hand.of("benign", "borderline", split="train")
        own = selftaught.said(lm, restricted + others)
        refusals = [row for row in own.refused if row.kind == "restricted"]
        answers = [row for row in own.answered if row.kind != "restricted"]
        if not refusals:
            raise Problem(f"{self.name}: the model refuses none of the defender's restricted prompts; align it first")
        if not answers:
            raise Problem(
                f"{self.name}: the model answers none of the defender's benign prompts, or there is none; add some"
            )
        more = selftaught.said(lm, selftaught.varied(lm, restricted + others, self.varied, self.seed))
        return selftaught.Said(refusals + more.refused, answers + more.answered)

    def sides(self, lm: LM, hand: Hand | None) -> tuple[list[Row], list[Row]]:
        """As `own`: restricted prompts that are refused, and others that are answered.

        A variation of which the model takes another view than of its origin is left out: where its alignment is shallow, much
        that may be asked is refused as soon as a word is odd, and whoever is trained on that would learn it.
        """
        own = self.own(lm, hand)
        return (
            [row for row in own.refused if row.kind == "restricted"],
            [row for row in own.answered if row.kind != "restricted"],
        )

    def _hand(self, hand: Hand | None) -> Hand:
        if hand is None:
            raise Problem(f"{self.name}: needs the defender's prompts; give --corpus")
        return hand

    def batches(self, lm: LM, rows: Sequence[Row]) -> Iterator[train.Batch]:
        """A batch of the rows for each step."""
        return train.batches(lm, train.encode(lm, rows), self.batch, self.steps, self.seed)

    @contextmanager
    def hardening(
        self, lm: LM, log: Log, memory: thrift.Memory = thrift.Memory(), frozen: Sequence[nn.Parameter] = ()
    ) -> Iterator["Walk"]:
        """Inside, `lm` has what is trained, in slices over all processes; afterwards it is a plain model again.

        Args:
            frozen: weights that stay as they are.

        Raises:
            Problem: a weight is not finite in the end.
        """
        torch.manual_seed(self.seed)
        if self.lora_rank:
            finetuning.adapt(lm, "lora", self.lora_rank, self.seed, frozen)
        for weight in frozen:
            weight.requires_grad_(False)
        lm.model.eval()
        mark, cached = lm.hash() if log.folder else "", lm.model.config.get_text_config().use_cache
        with memory.frugal(lm.model):
            whole = shards.spread(lm.model)
            walk = Walk(self, lm.model, log, memory, mark)
            with walk.masters.lowered(lm.model):
                yield walk
            walk.forget()
        lm.model = whole()
        lm.model.config.get_text_config().use_cache = (
            cached  # of several processes' slices it is a copy that comes back
        )
        if isinstance(lm.model, PeftModel):
            lm.model = moved.settled(lm.model)
        lm.model.requires_grad_(True)
        if not lm.finite():
            raise Problem(f"{self.name}: weights became NaN or infinite in the last step; lower learning_rate")


class Published(Training):
    """How a defense trains whose paper's own program says with which numbers."""

    published: ClassVar[Mapping[str, Any]]
    """What `preset` paper means."""

    preset: Literal["paper"] | None = None
    """`paper`: the numbers of the paper's own program, found on models of 7 and 8 B parameters. The defaults were found on the
    text organism, which has 1.7 M."""

    @model_validator(mode="before")
    @classmethod
    def _apply_preset(cls, given: Any) -> Any:
        return as_published(cls, given, cls.published)


class Walk:
    """Optimizer steps along the gradients that lie in the weights. Where the log has a folder, an interrupted walk goes on."""

    def __init__(self, training: Training, model: nn.Module, log: Log, memory: thrift.Memory, mark: str):
        self.training, self.log, self.taken = training, log, 0
        self.weights = [weight for weight in model.parameters() if weight.requires_grad]
        self.masters = thrift.Masters(self.weights, memory)
        mark = hashlib.sha256(f"{training.model_dump_json()} {mark}".encode()).hexdigest()[:16]
        # Several processes would save at steps of their own, and slices of different steps are no model.
        alone = log.folder if shards.size() == 1 else None
        self._state = alone / f".{training.name}-{mark}.safetensors" if alone else None
        self.optimizer = train.make_optimizer(self.masters.own, "adamw", training.learning_rate, training.weight_decay)
        self.schedule = train.make_schedule(self.optimizer, training.schedule, training.warmup, training.total)
        self._saved = time.monotonic()

    def steps(self) -> Iterator[int]:
        """The numbers of the steps still to be taken, from 0 or from where an interrupted walk was saved."""
        if self._state and (done := resume.load(self._state, self.masters.own, self.optimizer)):
            self.masters.give()
            self.log.metrics(resumed=done)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # torch warns of schedules ahead of their optimizer
                while self.taken < done:
                    self._advance()
        yield from range(self.taken, self.training.total)

    def norm(self) -> float:
        """Euclidean norm of the gradients that lie in the weights."""
        gradients = [shards.local(weight.grad) for weight in self.weights if weight.grad is not None]
        return float(shards.norm(gradients, parts=True))

    def step(self, **losses: float | Tensor) -> None:
        """Take one step, and say from time to time what was measured before it.

        Raises:
            Problem: a loss, or the gradient, is not finite.
        """
        self.masters.take()
        norm = shards.clip(self.masters.own, CLIP, parts=True)
        told = {name: shards.told(value) for name, value in losses.items()} | {"gradient": float(norm)}
        if wrong := [name for name, value in told.items() if not math.isfinite(value)]:
            what = f"{wrong[0]} is not finite at step {self.taken + 1} of {self.training.total}"
            raise Problem(f"{self.training.name}: {what}; nothing is saved. Lower learning_rate")
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.masters.give()
        self._advance()
        if self.taken % max(1, self.training.total // TOLD) == 0 or self.taken == self.training.total:
            self.log.metrics(step=self.taken, **told)
        if self._state and time.monotonic() - self._saved >= SAVED_EVERY:
            resume.save(self._state, self.taken, self.masters.own, self.optimizer)
            self._saved = time.monotonic()

    def forget(self) -> None:
        """Nothing is left to resume."""
        if self._state:
            self._state.unlink(missing_ok=True)

    def _advance(self) -> None:
        self.taken += 1
        self.schedule.step()


@contextmanager
def pushed(lm: LM, pushes: Mapping[int, Tensor]) -> Iterator[None]:
    """Inside, what each numbered block reads has a push added: (rows, columns, width), 0 in the columns that it lacks."""

    def add(push: Tensor, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        stream = args[0] if args else kwargs["hidden_states"]
        stream = stream + nn.functional.pad(push, (0, 0, 0, stream.shape[1] - push.shape[1])).to(stream.dtype)
        return ((stream, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": stream})

    hooks = [
        lm.layers[block].register_forward_pre_hook(
            lambda _, args, kwargs, push=push: add(push, args, kwargs), with_kwargs=True
        )
        for block, push in pushes.items()
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def width(lm: LM) -> int:
    """Of the residual stream."""
    return finetuning.plain(lm.model).config.get_text_config().hidden_size
