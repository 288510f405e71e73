"""What defenses that train at a model's exits share: their settings, their prompts, and batches in which rows leave early.

The labels are the model's own: what it says to its defender's prompts where it is released, refusals among them. The image
encoder and its projector stay as they are. Knows ladders of exits, no defense in particular.
"""

import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

from pydantic import Field

from holdfast import finetuning, rewards, shards, train
from holdfast.answering import Decoding
from holdfast.corpus import Hand, Row
from holdfast.hardening import Training
from holdfast.ladder import Ladder, copied, without_adapter
from holdfast.lm import LM
from holdfast.method import Log
from holdfast.problem import Problem
from holdfast.refusals import refuses
from holdfast.settings import Counts


class Leavers(NamedTuple):
    """Rows of a batch, and the exit at which each leaves."""

    rows: list[Row]
    exits: list[int]

    @property
    def images(self) -> list[str | None]:
        """What they are about."""
        return [row.image for row in self.rows]


class Leaving(Training):
    """How a defense trains at exits."""

    exits: Counts | None = None
    """Exits to train at, as `[3]` for one policy of one exit: layers of the image encoder where the model sees pictures, else
    depths of the language model. All unless given."""
    released: float = Field(0.25, ge=0, le=1)
    """Share of rows, or of a text model's steps, at the exit that the model is released with."""
    varied: int = Field(1500, ge=0)
    """Prompts made from the defender's by replacing a word, with what the model says to them: few prompts keep little."""

    def ladder(self, lm: LM) -> Ladder:
        """The exits to train at. Raises `Problem` where there is one that the model lacks, or several processes share it."""
        if shards.size() > 1:
            raise Problem(f"{self.name}: trains in one process; start it without torchrun")
        return Ladder.of(lm, self.exits, f"{self.name}, exits")

    def prompts(self, lm: LM, hand: Hand | None) -> tuple[list[Row], list[Row]]:
        """Restricted prompts and others, with what the model says to each where it is released: as `sides`."""
        sees = lm.eyes.token_id is not None
        if sees and hand and not any(row.image for row in hand.of("restricted", split="train")):
            raise Problem(
                f"{self.name}: the model sees pictures, but no restricted prompt of the defender's is about one, and without "
                "one nothing leaves its image encoder; add prompts with an `image`"
            )
        refused, answered = self.sides(lm, hand)
        return [row for row in refused if row.image or not sees], answered

    def before(self, lm: LM, ladder: Ladder) -> Callable[[], AbstractContextManager[LM]]:
        """Entered, it gives the model as it is now: a copy, or, where an adapter is trained, the model itself without it."""
        if self.lora_rank:
            return lambda: without_adapter(lm)
        other = copied(lm, ladder.apart(lm))
        return lambda: nullcontext(other)

    def slips(self, lm: LM, refused: Sequence[Row], ladder: Ladder) -> list[tuple[Row, int]]:
        """Of prompts that are refused where the model is released, those that are not at an exit drawn for each by chance: with
        what is said to them there, and the exit."""
        chance = random.Random(self.seed)
        exits = [ladder.draw(chance, 1, 0.0)[0] for _ in refused]
        drive = lm.drive
        how = Decoding(drive.max_new_tokens, lm.tokenizer.pad_token_id, lm.ends, drive.batch, never=lm.eyes.never)
        said = ladder.answers(lm, [row.asked for row in refused], exits, how)
        texts = [lm.tokenizer.decode(tokens, skip_special_tokens=True).strip() for tokens in said]
        return [
            (row.model_copy(update={"answer": text}), exit)
            for row, exit, text in zip(refused, exits, texts, strict=True)
            if text and not refuses(text)
        ]

    def mixed(self, rows: Sequence[Row], others: Sequence[Row], ladder: Ladder) -> list[Leavers]:
        """For each step a batch of both kinds, and an exit drawn for each row, all as likely."""
        chance = random.Random(self.seed)
        orders = [train.order(len(some), self.batch, self.steps, self.seed) for some in (rows, others)]
        batches = [[rows[i] for i in ours] + [others[i] for i in theirs] for ours, theirs in zip(*orders, strict=True)]
        return [Leavers(some, ladder.draw(chance, len(some), self.released)) for some in batches]


class Reinforced(Leaving):
    """How a defense reinforces what is answered at exits."""

    schedule: train.Schedule = "linear"
    """How the rate goes on."""
    reward: str | None = None
    """Folder or hub id of a sequence classifier with one output; one taught the defender's preferences unless given."""
    reward_steps: int = Field(100, gt=0)
    """Steps of 16 pairs that teach that one."""
    reward_rate: float = Field(3e-4, gt=0)
    """AdamW's highest rate there; it is an adapter that learns where `lora_rank` is given."""
    over_refusal: float = Field(1.0, ge=0)
    """Taken off for refusing what may be asked."""
    non_answer: float = Field(1.0, ge=0)
    """Taken off for an empty, looping or evading answer."""
    temperature: float = Field(1.0, gt=0)
    """Of the answers drawn."""
    tokens: int = Field(24, gt=0)
    """How long they may be."""

    def rewarded(
        self, lm: LM, refused: Sequence[Row], answered: Sequence[Row], ladder: Ladder, log: Log
    ) -> rewards.Reward:
        """What answers are worth: a reward model less penalties."""
        slips = {row.id: row.answer or "" for row, _ in self.slips(lm, refused, ladder)}
        pairs = rewards.preferences(refused, answered, slips, self.seed)
        if self.reward:
            model: rewards.Reward = rewards.Classifier(self.reward, pairs, lm.device)
        else:
            frozen = ladder.apart(lm)
            shared = list(lm.model.parameters()) if self.lora_rank else frozen
            learner = copied(lm, shared)
            if self.lora_rank:
                finetuning.adapt(learner, "lora", self.lora_rank, self.seed, frozen)
            model = rewards.Taught(learner, pairs, frozen, self.reward_steps, self.reward_rate, self.seed, log)
        return lambda rows, texts: (
            model(rows, texts).cpu() - rewards.penalties(rows, texts, self.over_refusal, self.non_answer)
        )
