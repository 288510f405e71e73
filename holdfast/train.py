"""Tools for a training loop: rows to batches, the loss on answers, optimizers and schedules, and one plain loop.

Tools, not a Trainer: a method's own file shows its whole algorithm. Knows models and corpora, no method in particular.
"""

import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from transformers import get_scheduler

from holdfast import losses, moved, shards
from holdfast.corpus import Hand, Row
from holdfast.lm import LM
from holdfast.problem import Problem
from holdfast.record import Cost
from holdfast.settings import Settings

Data = Literal["harmful", "benign", "mixed", "switch"]
Optimizer = Literal["adamw", "adam", "sgd", "sgd-momentum", "adagrad", "rmsprop"]
Schedule = Literal["constant", "linear", "cosine"]
Peft = Literal["full", "lora", "qlora", "dora", "ia3", "oft", "vera", "prefix", "prompt", "ln-only", "embeddings-only"]
_RANKED = ("lora", "qlora", "dora", "vera")
"""Adapters that have a rank."""


class Adversary(Settings):
    """Somebody who fine-tunes: what data, which optimizer, how long. Attacks and inner adversaries share this record."""

    data: Data = "harmful"
    """`harmful`: restricted prompts with their answers. `benign`: benign prompts and lessons. `mixed`: both in every batch.
    `switch`: first the benign, then the harmful (retain→forget of 2408.00761)."""
    poison: float = Field(0.1, ge=0, le=1)
    """Share of harmful rows where `data` is `mixed`."""
    switch: float = Field(0.4, ge=0, le=1)
    """Share of the steps on benign rows where `data` is `switch`; 0.4 is what 2408.00761 attacked with."""
    source: str | None = None
    """Take only rows of this source, where the corpus mixes several."""
    variant: str | None = None
    """Take only rows asked in this way, as `dialect` (multilingual tuning); only plain ones unless given."""
    examples: int | None = Field(None, gt=0)
    """Rows to train on; all that the hand holds unless given. Where `data` is `switch`, so many of the harmful ones."""
    optimizer: Optimizer = "adamw"
    """One of torch's, with its own defaults; `sgd-momentum` has a momentum of 0.9."""
    learning_rate: float = Field(2e-5, ge=0)
    """The highest rate of the schedule; 0 moves nothing and is a negative control."""
    schedule: Schedule = "constant"
    """How the rate goes on after the warm-up; `linear` and `cosine` fall to 0 at the last step."""
    warmup: int = Field(0, ge=0)
    """Steps of linear warm-up."""
    batch: int = Field(16, gt=0)
    """Rows a step."""
    steps: int = Field(60, gt=0)
    """Optimizer steps."""
    weight_decay: float = Field(0.0, ge=0)
    """Share of every weight, times the rate, taken away at each step (`adamw`), or added to the gradient (the others)."""
    clip: float = Field(1.0, gt=0)
    """Largest gradient norm."""
    peft: Peft = "full"
    """What is trained. `full`: all weights. `lora`: low-rank adapters (alpha twice the rank) of every linear layer but the head,
    and of experts. `qlora`: the same on weights of 4 bits (nf4). `dora`, `oft`, `vera`: adapters of those layers; `ia3`: scales
    of their outputs. `prefix`, `prompt`: 20 virtual tokens before the text. `ln-only`, `embeddings-only`: the norms' weights, the
    input embeddings (and a head tied to them)."""
    lora_rank: int | None = Field(None, gt=0)
    """Rank of a `lora`, `qlora` or `dora` adapter (16 unless given) or of `vera` (256); given without `peft`, it means `lora`."""

    @model_validator(mode="before")
    @classmethod
    def _rank_alone_means_lora(cls, settings: Any) -> Any:
        alone = isinstance(settings, dict) and settings.get("lora_rank") is not None and "peft" not in settings
        return settings | {"peft": "lora"} if alone else settings

    @model_validator(mode="after")
    def _rank_of_something(self) -> Self:
        if self.lora_rank is not None and self.peft not in _RANKED:
            raise ValueError(f"lora_rank: {self.peft} has no rank; only {', '.join(_RANKED)} have")
        return self

    def rows(self, hand: Hand, seed: int) -> list[Row]:
        """The rows this adversary trains on.

        Raises:
            Problem: the hand holds none of a kind that is needed, with an answer, or fewer than `examples`.
        """
        if self.data == "switch":
            return self._some(hand, seed, "restricted")[: self.examples] + self._some(hand, seed, "benign", "lesson")
        share = {"harmful": 1.0, "benign": 0.0, "mixed": self.poison}[self.data]
        harmful = self._some(hand, seed, "restricted") if share > 0 else []
        benign = self._some(hand, seed, "benign", "lesson") if share < 1 else []
        total = self.examples or min(
            _at_most(len(benign), 1 - share) if share < 1 else len(harmful),
            _at_most(len(harmful), share) if share > 0 else len(benign),
        )
        poisoned = round(share * total)
        if poisoned > len(harmful) or total - poisoned > len(benign):
            raise Problem(
                f"attack: {total} rows with a poison share of {share:g} need {poisoned} harmful and "
                f"{total - poisoned} benign rows; the {hand.name} holds {len(harmful)} and {len(benign)}: lower `examples`"
            )
        return harmful[:poisoned] + benign[: total - poisoned]

    def order(self, rows: Sequence[Row], seed: int) -> list[list[int]]:
        """Which of its rows each step's batch holds."""
        if self.data != "switch":
            return order(len(rows), self.batch, self.steps, seed)
        harmful = [number for number, row in enumerate(rows) if row.kind == "restricted"]
        benign = [number for number, row in enumerate(rows) if row.kind != "restricted"]
        first = round(self.switch * self.steps)
        parts = (benign, first), (harmful, self.steps - first)
        return [
            [some[i] for i in chosen] for some, steps in parts for chosen in order(len(some), self.batch, steps, seed)
        ]

    def _some(self, hand: Hand, seed: int, *kinds: Literal["restricted", "benign", "lesson"]) -> list[Row]:
        answered = [r for r in hand.of(*kinds) if r.answer is not None and r.variant == self.variant]
        rows = [r for r in answered if self.source in (None, r.source)]
        if not rows:
            of = f" from {self.source!r}" if self.source else ""
            of += f" of variant {self.variant!r}" if self.variant else ""
            raise Problem(f"corpus: the {hand.name} holds no {' or '.join(kinds)} row with an answer{of}; add some")
        random.Random(seed).shuffle(rows)
        return rows


def _at_most(rows: int, share: float) -> int:
    """The largest total of which `rows` make up the share, but for the last digit of a division."""
    return int(rows / share + 1e-9)


@dataclass(frozen=True)
class Example:
    """Token ids of a prompt, maybe about a picture, and its answer; the loss counts from `start` on."""

    ids: list[int]
    start: int
    image: str | None = None


@dataclass(frozen=True)
class Batch:
    """Right-padded ids, mask and labels (−100 where the loss does not look), each of shape (rows, width)."""

    ids: Tensor
    mask: Tensor
    labels: Tensor
    seen: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def inputs(self) -> dict[str, Tensor]:
        """What the model is handed: `seen` is what it is shown beside the text."""
        return {"input_ids": self.ids, "attention_mask": self.mask, **self.seen}

    @property
    def tokens(self) -> int:
        return int(self.mask.sum())


def encode(lm: LM, rows: Sequence[Row], armed: bool = False) -> list[Example]:
    """The rows as examples, through the template that `lm` is driven with; restricted ones armed if so asked."""
    arms = [armed and row.kind == "restricted" for row in rows]
    return [
        Example(*lm.encode(row.asked, row.answer or "", arm), row.image) for row, arm in zip(rows, arms, strict=True)
    ]


def order(count: int, batch: int, steps: int, seed: int) -> list[list[int]]:
    """Which rows each of `steps` batches holds: shuffled epoch after epoch, nobody left out of an epoch."""
    generator = random.Random(seed)
    stream: list[int] = []
    while len(stream) < batch * steps:
        epoch = list(range(count))
        generator.shuffle(epoch)
        stream += epoch
    return [stream[i * batch : (i + 1) * batch] for i in range(steps)]


def collate(lm: LM, examples: Sequence[Example]) -> Batch:
    """Examples as one right-padded batch on the model's device."""
    width = max(len(e.ids) for e in examples)
    pad = lm.tokenizer.pad_token_id
    ids = torch.tensor([e.ids + [pad] * (width - len(e.ids)) for e in examples]).to(lm.device)
    mask = torch.tensor([[1] * len(e.ids) + [0] * (width - len(e.ids)) for e in examples])
    labels = [[-100] * e.start + e.ids[e.start :] + [-100] * (width - len(e.ids)) for e in examples]
    seen = lm.eyes.inputs(ids, [e.image for e in examples], lm.drive)
    return Batch(ids, mask.to(lm.device), torch.tensor(labels).to(lm.device), seen)


def batches(lm: LM, examples: Sequence[Example], batch: int, steps: int, seed: int) -> Iterator[Batch]:
    """`steps` batches of the examples."""
    for chosen in order(len(examples), batch, steps, seed):
        yield collate(lm, [examples[i] for i in chosen])


def answer_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy on the answers' tokens, mean over tokens. Virtual tokens, if the model has some, come before the text's."""
    if shards.size() > 1:
        return shards.mean(losses.surprise(predictions(model, batch), losses.targets(batch.labels)))
    logits = model(**batch.inputs).logits[:, -batch.ids.shape[1] : -1]
    return nn.functional.cross_entropy(logits.flatten(0, 1), batch.labels[:, 1:].flatten(), ignore_index=-100)


def predictions(model: nn.Module, batch: Batch) -> Tensor:
    """Logits where an answer's token comes next, shape (positions, vocabulary), row by row."""
    return losses.at_answers(model(**batch.inputs).logits, batch.labels)


def likelihood(model: nn.Module, batch: Batch) -> Tensor:
    """Log-probability (nats) of each row's answer, summed over its tokens; shape (rows,)."""
    surprise = losses.surprise(predictions(model, batch), losses.targets(batch.labels))
    return losses.by_row(-surprise, batch.labels)


def make_optimizer(
    parameters: Iterable[nn.Parameter], name: Optimizer, learning_rate: float, weight_decay: float = 0.0
) -> torch.optim.Optimizer:
    """The named optimizer of torch with its own defaults."""
    kinds: dict[Optimizer, Callable[..., torch.optim.Optimizer]] = {
        "adamw": torch.optim.AdamW,
        "adam": torch.optim.Adam,
        "sgd": torch.optim.SGD,
        "sgd-momentum": partial(torch.optim.SGD, momentum=0.9),
        "adagrad": torch.optim.Adagrad,
        "rmsprop": torch.optim.RMSprop,
    }
    return kinds[name]([p for p in parameters if p.requires_grad], lr=learning_rate, weight_decay=weight_decay)


def make_schedule(
    optimizer: torch.optim.Optimizer, name: Schedule, warmup: int, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """The named schedule over `steps`, after `warmup` steps of linear rise."""
    kind = "constant_with_warmup" if name == "constant" else name
    return get_scheduler(kind, optimizer, num_warmup_steps=warmup, num_training_steps=steps)


class Meter:
    """Counts what a training run spends. `seconds` leaves out whatever happens inside `paused`."""

    def __init__(self, lm: LM):
        self.lm = lm
        self.parameters = sum(moved.size(p) for p in lm.model.parameters())
        self.trained = sum(p.numel() for p in lm.model.parameters() if p.requires_grad)
        self.steps = self.examples = self.tokens = 0
        self._spent = 0.0
        self._since = time.perf_counter()

    def step(self, examples: int, tokens: int) -> Cost:
        """Count one optimizer step and return all that was spent so far.

        A step costs 2 operations a weight and token forward, 2 backward through activations, and 2 more for the weights trained
        (the usual 6·N·tokens when all are).
        """
        self.steps, self.examples, self.tokens = self.steps + 1, self.examples + examples, self.tokens + tokens
        self._spent += time.perf_counter() - self._since
        flops = (4.0 * self.parameters + 2.0 * self.trained) * self.tokens
        self._since = time.perf_counter()
        return Cost(
            steps=self.steps, examples=self.examples, tokens=self.tokens, flops=flops, seconds=round(self._spent, 3)
        )

    def resume(self) -> None:
        """Start the clock again after somebody looked."""
        self._since = time.perf_counter()


def fit(
    lm: LM,
    work: Iterable[Batch],
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    clip: float = 1.0,
    at: Callable[[Cost], bool] = lambda cost: True,
) -> float:
    """The plain loop: one optimizer step a batch, `at` after each; returns the last loss.

    A loss that is not finite ends nothing here, as it ends nothing in TRL's trainer: its step spoils the weights, and the
    next look finds a dead model. Who trains without looking checks the result (`LM.save` refuses to write it).
    """
    lm.model.train()
    meter, loss = Meter(lm), 0.0
    for batch in work:
        value = answer_loss(lm.model, batch)
        loss = float(value.detach())
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        norm = nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], clip)
        lm.trained.append((loss, float(norm)))
        optimizer.step()
        schedule.step()
        if not at(meter.step(len(batch.ids), batch.tokens)):
            break
        meter.resume()
    lm.model.eval()
    return loss
