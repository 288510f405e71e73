"""Classification with a language model: a linear head on what its trunk makes of a text, pooled over the tokens.

The answers of the rows are the classes. Any encoder or decoder serves: its trunk is the model without whatever predicts words.
A head has no bias and is a plain matrix (classes, width), so that it can be a named parameter like those of the trunk.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from holdfast.corpus import Row
from holdfast.lm import LM
from holdfast.problem import Problem

LONGEST = 512
"""Tokens of a text that are read."""
AT_ONCE = 256
"""Texts a batch where no gradient is needed."""


class Batch(NamedTuple):
    """Right-padded ids and mask, (rows, width), and the number of each row's class."""

    ids: Tensor
    mask: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Task:
    """Texts as token ids, each with the number of its class."""

    classes: tuple[str, ...]
    texts: tuple[tuple[int, ...], ...]
    labels: tuple[int, ...]
    pad: int
    device: torch.device

    def __len__(self) -> int:
        return len(self.texts)

    def batch(self, chosen: Sequence[int]) -> Batch:
        """The rows with these numbers."""
        texts = [self.texts[i] for i in chosen]
        width = max(map(len, texts))
        ids = torch.tensor([[*text, *[self.pad] * (width - len(text))] for text in texts], device=self.device)
        mask = torch.tensor([[1] * len(text) + [0] * (width - len(text)) for text in texts], device=self.device)
        return Batch(ids, mask, torch.tensor([self.labels[i] for i in chosen], device=self.device))

    def some(self, chosen: Sequence[int]) -> "Task":
        """The same task with these rows only."""
        texts, labels = tuple(self.texts[i] for i in chosen), tuple(self.labels[i] for i in chosen)
        return Task(self.classes, texts, labels, self.pad, self.device)


def task(lm: LM, rows: Sequence[Row], classes: Sequence[str] | None = None) -> Task:
    """The rows' texts, to be told apart by their answers, which are the classes unless these are given.

    Raises:
        Problem: a row has no answer or one that is no class, or there are fewer than two classes.
    """
    answers = [row.answer or "" for row in rows]
    classes = tuple(classes or sorted(set(answers)))
    if odd := sorted(set(answers) - set(classes)) or [""] * ("" in classes):
        raise Problem(
            f"corpus: answer {odd[0]!r} is no class of this task; give every row the class that it belongs to"
        )
    if len(classes) < 2:
        raise Problem(f"corpus: all {len(rows)} rows of a kind have one answer; there is nothing to tell apart")
    most = min(LONGEST, getattr(lm.model.config.get_text_config(), "max_position_embeddings", LONGEST))
    texts = tuple(tuple(lm.tokenizer(row.text, truncation=True, max_length=most).input_ids) for row in rows)
    pad = lm.tokenizer.pad_token_id
    return Task(classes, texts, tuple(classes.index(one) for one in answers), pad, lm.device)


def trunk(lm: LM) -> nn.Module:
    """The model without what predicts words."""
    return lm.model.base_model


def features(trunk: nn.Module, batch: Batch, parameters: Mapping[str, Tensor] | None = None) -> Tensor:
    """What the trunk makes of each text: the mean over its tokens of the last hidden state. With other `parameters` if given."""
    how = {"input_ids": batch.ids, "attention_mask": batch.mask}
    out = trunk(**how) if parameters is None else functional_call(trunk, dict(parameters), kwargs=how)
    mask = batch.mask[..., None].to(out.last_hidden_state.dtype)
    return (out.last_hidden_state * mask).sum(1) / mask.sum(1)


@torch.no_grad()
def all_features(trunk: nn.Module, task: Task) -> Tensor:
    """Of every text of the task, without gradients."""
    parts = [range(start, min(start + AT_ONCE, len(task))) for start in range(0, len(task), AT_ONCE)]
    return torch.cat([features(trunk, task.batch(part)) for part in parts])


def fresh_head(classes: int, width: int, chance: torch.Generator, like: Tensor) -> Tensor:
    """A head as torch would start it, drawn from `chance`, of the type and on the device of `like`."""
    bound = 1 / math.sqrt(width)
    drawn = torch.empty(classes, width).uniform_(-bound, bound, generator=chance)
    return drawn.to(like)


def width(lm: LM) -> int:
    """Of the trunk's features."""
    return int(lm.model.config.get_text_config().hidden_size)


def read_out(trunk: nn.Module, taught: Task, asked: Task, steps: int = 100) -> Tensor:
    """How well a head alone, fitted on all of one task, tells another's rows apart: 1 where right, 0 where wrong."""
    known, unknown = all_features(trunk, taught), all_features(trunk, asked)
    middle, spread = known.mean(0), known.std(0) + 1e-6
    known, unknown = (known - middle) / spread, (unknown - middle) / spread
    head = torch.zeros(len(taught.classes), known.shape[1], device=known.device, requires_grad=True)
    labels = torch.tensor(taught.labels, device=known.device)
    optimizer = torch.optim.LBFGS([head], max_iter=steps, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(known @ head.T, labels) + 1e-4 * head.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return ((unknown @ head.detach().T).argmax(-1).cpu() == torch.tensor(asked.labels)).float()
