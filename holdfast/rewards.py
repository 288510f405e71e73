"""What an answer is worth to a model that learns by reinforcement: a reward model of preferences, and what it must not miss.

The reward model is a copy of the model itself with one number in place of its head, where it is released, so that it sees the
picture; or any sequence classifier of Hugging Face's, which reads prompt and answer alone. Its preferences are the defender's:
the model's own refusal before a harmful answer, its own answer before a refusal, and both before what is no answer. Neither the
judge nor its prompts are known here. A reward that counts harm alone pays for evasion (seen in 2411.04291's own samples), so
refusing what may be asked, and saying nothing, cost extra.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from holdfast import train
from holdfast.checkpoint import locate
from holdfast.corpus import Row, plain
from holdfast.lm import LM
from holdfast.method import Log
from holdfast.problem import Problem
from holdfast.refusals import refuses

BATCH = 16
"""Pairs a step of a reward model's training."""
KNOWN = 256
"""Answers by whose scores a classifier's are scaled."""
DIALOGUE = "\n\nHuman: {prompt}\n\nAssistant: {answer}"
"""How HH-RLHF writes an exchange, for classifiers that know no pairs (as GPT-2's)."""

EVASIONS = (
    "I'm not sure what you're asking.",
    "I don't understand the question.",
    "Could you tell me more about what you mean?",
    "The picture shows something else.",
)
"""Answers that neither help nor refuse; the first is what a published model learned to say (2411.04291)."""

Reward = Callable[[Sequence[Row], Sequence[str]], Tensor]
"""A number for each row's answer, shape (rows,)."""


class Preference(NamedTuple):
    """A prompt, and of two answers to it the better and the worse."""

    row: Row
    better: str
    worse: str


def preferences(
    refused: Sequence[Row], answered: Sequence[Row], slips: Mapping[str, str], seed: int
) -> list[Preference]:
    """Every prompt's own answer before each way to be wrong: a slip, the other kind's answer, another prompt's, evasion, nothing.

    Args:
        refused: restricted prompts with the model's refusals.
        answered: other prompts with the model's answers.
        slips: by the id of a restricted prompt, what was said to it and should not have been.
    """
    chance, pairs = random.Random(seed), []
    wrong = list(slips.values())
    refusals, answers = ([row.answer or "" for row in rows] for rows in (refused, answered))
    for row in refused:
        slip = [slips.get(row.id) or chance.choice(wrong)] if wrong else []
        others = [*slip, chance.choice(answers), chance.choice(EVASIONS), ""]
        pairs += [Preference(row, row.answer or "", worse) for worse in dict.fromkeys(others)]
    for row in answered:
        others = [*chance.choices(refusals, k=2), chance.choice(answers), chance.choice(EVASIONS), ""]
        pairs += [Preference(row, row.answer or "", worse) for worse in dict.fromkeys(others)]
    return [pair for pair in pairs if pair.worse != pair.better]


class Taught:
    """A reward model made of the model itself and taught pairs; 0 and 1 are the mean and the spread of what it was taught."""

    def __init__(
        self,
        lm: LM,
        pairs: Sequence[Preference],
        frozen: Sequence[nn.Parameter],
        steps: int,
        rate: float,
        seed: int,
        log: Log,
    ) -> None:
        """`lm` is changed into it, in what may be trained of it and is not `frozen`."""
        torch.manual_seed(seed)
        self.lm, self.head = lm, nn.Linear(lm.model.config.get_text_config().hidden_size, 1).to(lm.device)
        kept = {id(weight) for weight in frozen}
        weights = [one for one in (*lm.model.parameters(), *self.head.parameters()) if one.requires_grad]
        weights = [weight for weight in weights if id(weight) not in kept]
        optimizer = train.make_optimizer(weights, "adamw", rate)
        schedule = train.make_schedule(optimizer, "cosine", steps // 20, steps)
        for chosen in train.order(len(pairs), BATCH, steps, seed):
            some = [pairs[number] for number in chosen]
            loss = -nn.functional.logsigmoid(self._margin(some)).mean()
            loss.backward()
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            schedule.step()
            lm.model.zero_grad()  # of frozen weights too, which others share
            self.head.zero_grad()
        told = [(pair.row, text) for pair in pairs for text in (pair.better, pair.worse)]
        known = self._scored(*zip(*told, strict=True))
        self.middle, self.spread = float(known.mean()), float(known.std())
        log.metrics(stage="reward model", pairs=len(pairs), loss=float(loss.detach()))

    def __call__(self, rows: Sequence[Row], texts: Sequence[str]) -> Tensor:
        return (self._scored(rows, texts) - self.middle) / self.spread

    @torch.no_grad()
    def _scored(self, rows: Sequence[Row], texts: Sequence[str]) -> Tensor:
        chunks = [slice(start, start + 2 * BATCH) for start in range(0, len(rows), 2 * BATCH)]
        return torch.cat([self._raw(rows[some], texts[some]) for some in chunks])

    def _margin(self, pairs: Sequence[Preference]) -> Tensor:
        texts = [pair.better for pair in pairs] + [pair.worse for pair in pairs]
        better, worse = self._raw([pair.row for pair in pairs] * 2, texts).chunk(2)
        return better - worse

    def _raw(self, rows: Sequence[Row], texts: Sequence[str]) -> Tensor:
        answered = [row.model_copy(update={"answer": text}) for row, text in zip(rows, texts, strict=True)]
        batch = train.collate(self.lm, train.encode(self.lm, answered))
        images = [row.image for row in rows]
        with self.lm.eyes.left(self.lm.model, images, self.lm.drive, [None] * len(rows)):
            states = self.lm.model(**batch.inputs, output_hidden_states=True, logits_to_keep=1).hidden_states[-1]
        last = states[torch.arange(len(rows)), batch.mask.sum(-1) - 1]
        return self.head(last.float())[:, 0]


class Classifier:
    """A reward model of Hugging Face's: one number for prompt and answer, as those trained on HH-RLHF. It sees no picture.

    0 and 1 are the mean and the spread of what it gives to known answers, right ones and wrong ones.
    """

    def __init__(self, name: str, pairs: Sequence[Preference], device: torch.device) -> None:
        folder = locate(name)
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            self.model = AutoModelForSequenceClassification.from_pretrained(
                folder, trust_remote_code=False, use_safetensors=True, dtype=torch.float32
            )
        except (OSError, ValueError) as error:
            why = " ".join(str(error).split())
            raise Problem(
                f"reward {name}: cannot be loaded ({why}); give a sequence classifier of one output"
            ) from error
        if (count := self.model.config.num_labels) != 1:
            raise Problem(f"reward {name}: gives {count} numbers for an answer; give a reward model, which gives 1")
        self.tokenizer.pad_token = self.tokenizer.pad_token or self.tokenizer.eos_token
        self.model.config.pad_token_id = self.tokenizer.pad_token_id
        self.model.to(device).eval()
        known = [(pair.row, text) for pair in pairs[:KNOWN] for text in (pair.better, pair.worse)]
        scores = self._scored(*zip(*known, strict=True))
        self.middle, self.spread = float(scores.mean()), float(scores.std()) or 1.0

    def __call__(self, rows: Sequence[Row], texts: Sequence[str]) -> Tensor:
        return (self._scored(rows, texts) - self.middle) / self.spread

    @torch.no_grad()
    def _scored(self, rows: Sequence[Row], texts: Sequence[str]) -> Tensor:
        asked = [row.text for row in rows]
        told: tuple[list[str], ...] = (asked, list(texts))
        if self.tokenizer.sep_token is None:
            told = ([DIALOGUE.format(prompt=one, answer=other) for one, other in zip(asked, texts, strict=True)],)
        read = self.tokenizer(*told, padding=True, truncation=True, return_tensors="pt")
        return self.model(**read.to(self.model.device)).logits[:, 0]


def penalties(rows: Sequence[Row], texts: Sequence[str], over_refusal: float, non_answer: float) -> Tensor:
    """What is taken off, shape (rows,): for a refusal of what may be asked, and, whatever was asked, for what is no answer."""
    return torch.tensor(
        [
            over_refusal * (row.kind != "restricted" and refuses(text)) + non_answer * (not _says(text))
            for row, text in zip(rows, texts, strict=True)
        ]
    )


def _says(text: str) -> bool:
    """Whether an answer holds something, is no loop and evades nothing."""
    words = plain(text).split()[-50:]  # of a long answer half the words are repeated anyway
    return len(set(words)) > len(words) / 2 and not any(plain(one) in plain(text) for one in EVASIONS)
