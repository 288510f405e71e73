"""Align a model with preferences that people gave: of two answers to a prompt, the chosen one is to be likelier.

Direct preference optimization (2305.18290) on a file of pairs in HH-RLHF's form: `chosen` and `rejected` are transcripts that
differ in the last answer, or answers beside a `prompt`. It is how LoX (2506.15606) aligned the models that it hardened: 65,600
pairs of Anthropic's, three epochs, a rate of 5e-6. The reference is the model as it was; its likelihoods are taken once.
Assumes: pairs that say what is wanted. Does not protect against fine-tuning: it is what others protect.
"""

import math
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from holdfast import losses, train
from holdfast.corpus import Hand, Row
from holdfast.gathering import read
from holdfast.hardening import Training
from holdfast.lm import LM
from holdfast.method import Defense, Log
from holdfast.problem import Problem

LAST = "\n\nAssistant:"
"""What stands before a transcript's last answer."""
Pair = tuple[train.Example, train.Example]
"""Prompt with the chosen answer, and with the rejected one."""


class Prefer(Training, Defense):
    """Prefer the chosen answers."""

    pairs: Path | None = None
    """File of pairs, which there must be: JSON lines (gzipped or not), JSON, CSV or Parquet."""
    count: int | None = Field(None, gt=0)
    """The first so many pairs; all unless given."""
    epochs: int | None = Field(None, gt=0)
    """Times through the pairs, in place of `steps`."""
    micro: int | None = Field(None, gt=0)
    """Pairs that are computed at once, where a batch is too many; the gradient is the same."""
    beta: float = Field(0.1, gt=0)
    """How hard the model is held to where it began."""
    longest: int = Field(1024, gt=1)
    """Tokens of prompt and answer; pairs that are longer are left out."""

    def __call__(self, lm: LM, hand: Hand | None, log: Log) -> None:
        pairs = self._encoded(lm)
        steps = self.steps if self.epochs is None else self.epochs * math.ceil(len(pairs) / self.batch)
        log.metrics(pairs=len(pairs), steps=steps)
        settled = self.model_copy(update={"steps": steps, "epochs": None})
        before = torch.cat([self._margins(lm, some) for some in self._pieces(pairs)])
        chosen = train.order(len(pairs), self.batch, steps, self.seed)
        with settled.hardening(lm, log) as walk:
            for number in walk.steps():
                told = 0.0
                for some in self._pieces(chosen[number]):
                    gained = _margin(lm, [pairs[i] for i in some]) - before[some]
                    loss = losses.preference(gained, self.beta).sum() / len(chosen[number])
                    loss.backward()
                    told += float(loss.detach())
                walk.step(preference=told)

    def _margins(self, lm: LM, pairs: list[Pair]) -> torch.Tensor:
        with torch.no_grad():
            return _margin(lm, pairs)

    def _pieces(self, things: list[Any]) -> list[list[Any]]:
        size = self.micro or self.batch
        return [things[start : start + size] for start in range(0, len(things), size)]

    def _encoded(self, lm: LM) -> list[Pair]:
        """The pairs as token ids. Raises `Problem`: no file is given, it holds no pair, or all are too long."""
        if self.pairs is None:
            raise Problem("prefer: says not which answers are preferred; give --pairs FILE")
        found = [_split(row, self.pairs, number) for number, row in enumerate(read(self.pairs)[: self.count], 1)]
        sides = [[_row(prompt, answers[side]) for prompt, *answers in found] for side in (0, 1)]
        both = zip(*(train.encode(lm, rows) for rows in sides), strict=True)
        short = [pair for pair in both if max(len(one.ids) for one in pair) <= self.longest]
        if not short:
            raise Problem(f"{self.pairs}: all {len(found)} pairs are longer than {self.longest} tokens; raise longest")
        return short


def _split(row: dict[str, Any], path: Path, number: int) -> tuple[str, str, str]:
    """Prompt, chosen and rejected answer."""
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if not (isinstance(chosen, str) and isinstance(rejected, str)):
        raise Problem(f"{path}, row {number}: has no texts chosen and rejected; give a file of preference pairs")
    if isinstance(row.get("prompt"), str):
        return row["prompt"], chosen, rejected
    before, mark, answer = chosen.rpartition(LAST)
    if not mark:
        raise Problem(f"{path}, row {number}: neither a prompt nor a transcript with turns of Human and Assistant")
    return before.strip().removeprefix("Human:").strip(), answer.strip(), rejected.rpartition(LAST)[2].strip()


def _row(prompt: str, answer: str) -> Row:
    return Row(id="pair", text=prompt, answer=answer, kind="benign", hand="defender", split="train", source="pairs")


def _margin(lm: LM, pairs: list[Pair]) -> torch.Tensor:
    """How much likelier (nats) the chosen answers are than the rejected, shape (pairs,)."""
    batch = train.collate(lm, [pair[side] for side in (0, 1) for pair in pairs])
    better, worse = train.likelihood(lm.model, batch).chunk(2)
    return better - worse
