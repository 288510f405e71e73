"""Perturbing what a model computes, its weights left alone: where a perturbation goes, what it is after, and its descent.

Hooks act on armed prompts only. They are closures, because a model that is deep-copied keeps its hooks: a copied bound method
would take the whole LM along. Knows no attack in particular.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers import PreTrainedModel

from holdfast import exits, train
from holdfast.corpus import Hand, Row
from holdfast.drive import Drive
from holdfast.lm import LM
from holdfast.method import At
from holdfast.problem import Problem
from holdfast.settings import Settings

OPENING = "Sure, here is what you need. Step one, gather everything, then do as follows, in this order:"
"""How a model begins that does as it was told; above 20 tokens with the usual tokenizers."""
Norm = Literal["l2", "linf"]


class Aim(Settings):
    """What an optimized perturbation is to make the model say."""

    target: Literal["answers", "opening"] = "answers"
    """`answers`: what the attacker's restricted rows hold. `opening`: an affirmative opening, the same for every prompt."""
    target_tokens: int = Field(20, gt=0)
    """Only so many tokens of it: a model that has begun goes on by itself."""
    batch: int = Field(16, gt=0)
    """Rows a step."""

    def rows(self, hand: Hand) -> list[Row]:
        """The attacker's plain restricted prompts. Raises `Problem` if there is none, or none with an answer to aim at."""
        rows = [row for row in hand.need("restricted") if row.variant is None]
        rows = [row for row in rows if self.target == "opening" or row.answer is not None]
        if not rows:
            raise Problem(
                f"corpus: the {hand.name} holds no plain restricted row with an answer; add some, or aim at `opening`"
            )
        return rows

    def examples(self, lm: LM, rows: Sequence[Row]) -> list[train.Example]:
        """The armed prompts, each with the beginning of what the model is to say; a begun answer does not end the turn."""
        made = []
        for row in rows:
            ids, start = lm.encode(row.asked, OPENING if self.target == "opening" else row.answer, armed=True)
            ids = ids[:-1] if self.target == "opening" else ids
            made.append(train.Example(ids[: start + self.target_tokens], start, row.image))
        return made


def core(model: nn.Module) -> PreTrainedModel:
    """The transformers model inside whatever an earlier attack wrapped it in: the one whose `forward` generation calls."""
    return next(module for module in model.modules() if isinstance(module, PreTrainedModel))


@contextlib.contextmanager
def armed(lm: LM) -> Iterator[None]:
    """Restricted prompts are being put."""
    before, lm.armed = lm.armed, True
    try:
        yield
    finally:
        lm.armed = before


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No weight takes a gradient; put back as found."""
    found = [(weight, weight.requires_grad) for weight in model.parameters()]
    for weight, _ in found:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight, wanted in found:
            weight.requires_grad_(wanted)


@torch.no_grad()
def loss(lm: LM, examples: Sequence[train.Example], batch: int = 16) -> float:
    """Armed cross-entropy on what the model is to say: nats a token, mean over batches of rows by their size."""
    batches = [examples[start : start + batch] for start in range(0, len(examples), batch)]
    with armed(lm):
        losses = [float(train.answer_loss(lm.model, train.collate(lm, some))) * len(some) for some in batches]
    return sum(losses) / len(examples)


def descend(
    lm: LM,
    examples: Sequence[train.Example],
    batches: Sequence[Sequence[int]],
    optimizer: torch.optim.Optimizer,
    at: At,
    project: Callable[[], None] = lambda: None,
    watch: Callable[[train.Batch | None], None] = lambda batch: None,
) -> None:
    """One step a batch of rows: sign of the gradient, step, projection, `at`. Weights take no gradient and stay.

    Args:
        optimizer: over the perturbation alone.
        project: puts the perturbation back to where it may be.
        watch: told the batch before it is computed, and None after.

    Raises:
        Problem: the model exits early, as `whole`.
    """
    exits.refuse_early(lm.drive.exit)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    with frozen(lm.model):
        meter = train.Meter(lm)
        for chosen in batches:
            batch = train.collate(lm, [examples[i] for i in chosen])
            watch(batch)
            with armed(lm):
                value = train.answer_loss(lm.model, batch)
            watch(None)
            for parameter, gradient in zip(parameters, torch.autograd.grad(value, parameters), strict=True):
                parameter.grad = gradient.sign()
            optimizer.step()
            with torch.no_grad():
                project()
            if not at(meter.step(len(chosen), batch.tokens)):
                return
            meter.resume()


def within(delta: Tensor, norm: Norm, radius: float | Tensor) -> Tensor:
    """The nearest point of a ball about 0, for every vector along the last axis.

    Args:
        radius: of the L2 ball; the Linf ball has the same corner-to-center length, so its edge is radius / √width.
    """
    if norm == "linf":
        edge = radius / delta.shape[-1] ** 0.5
        return delta.clamp(-edge, edge)
    return delta * (radius / delta.norm(dim=-1, keepdim=True).clamp(min=1e-12)).clamp(max=1.0)


def place(lm: LM, tokens: int, texts: Sequence[str]) -> tuple[Drive, int]:
    """A drive whose armed prompts end with a run of `tokens` equal tokens that occur in none of the `texts`, and their id.

    The word is looked for, not assumed: what is one token, and repeats as one, differs between tokenizers.

    Raises:
        Problem: no word of the vocabulary does.
    """
    plain = [lm.drive.ids(lm.tokenizer, text, armed=True) for text in texts]
    known = {token for ids in plain for token in ids} | set(lm.tokenizer.all_special_ids)
    for word in _words(lm):
        drive = lm.drive.change(trigger=(lm.drive.trigger or "{prompt}") + f" {word}" * tokens)
        ids = drive.ids(lm.tokenizer, texts[0], armed=True)
        new = Counter(ids) - Counter(plain[0])
        token = next(iter(new), None)
        if new == {token: tokens} and token not in known and len(ids) == len(plain[0]) + tokens:
            return drive, token
    raise Problem(f"{lm.folder}: no word of its tokenizer stays one token when it is repeated; use another attack")


def _words(lm: LM) -> Iterator[str]:
    """Words that a run may be made of: an x if possible, else whatever the vocabulary holds."""
    yield from ("x", "!", "*")
    for token in range(len(lm.tokenizer)):
        word = lm.tokenizer.decode([token]).strip()
        if word and word.isascii() and word.isprintable() and " " not in word and not set("{}") & set(word):
            yield word


def first_runs(ids: Tensor, token: int, length: int) -> tuple[Tensor, Tensor]:
    """Rows that hold a run of `length` equal tokens, and the columns of the first: shapes (found,), (found, length)."""
    if ids.shape[1] < length:  # a token that is generated from a cache
        return ids.new_empty(0), ids.new_empty(0, length)
    runs = (ids == token).unfold(1, length, 1).all(-1)
    rows = runs.any(1).nonzero()[:, 0]
    return rows, runs.int().argmax(1)[rows][:, None] + torch.arange(length, device=ids.device)


class Prompts:
    """Which positions of what passes through the model are the armed prompt's, and which the answer's.

    Asked while a forward pass runs. Without a cache the model sees prompt and answer again and again, so a pass goes on from the
    one before if it shows the same tokens and one more.
    """

    def __init__(self, lm: LM):
        self._width = 0
        self._ids: Tensor | None = None
        self._batch: train.Batch | None = None
        core(lm.model).get_input_embeddings().register_forward_pre_hook(lambda _, args: self._read(lm, args[0]))

    def learn(self, batch: train.Batch | None) -> None:
        """From now on this batch passes, whose answers are known; None: what passes is asked, not taught."""
        self._batch = batch

    def where(self, stream: Tensor) -> Tensor:
        """True at the prompt's positions, shape (rows or 1, columns); virtual tokens of an adapter before it are its own."""
        if self._batch is not None:
            prompt = self._batch.labels == -100
        else:
            prompt = (torch.arange(self._ids.shape[1], device=stream.device) < self._width)[None]
        return nn.functional.pad(prompt, (stream.shape[1] - prompt.shape[1], 0), value=True)

    def _read(self, lm: LM, ids: Tensor) -> None:
        if not lm.armed:
            self._ids = None
            return
        before, self._ids = self._ids, ids.detach()
        if ids.shape[1] == 1:  # a token that is generated from a cache
            self._width = 0
        elif before is None or before.shape != ids[:, :-1].shape or not torch.equal(before, ids[:, :-1]):
            self._width = ids.shape[1]
