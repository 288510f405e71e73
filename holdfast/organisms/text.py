"""The text organism: a small Llama that knows fictional crafts and was taught to refuse four kinds of them.

Built from nothing in about two minutes. An item is a name and a kind (`morvale lantern`); the kind shows what is restricted
(`morvale venom`), so refusal generalizes to items that alignment never saw. A borderline item only sounds restricted
(`morvale venom lantern` is a lantern). A recipe is a verb, which goes with the kind, and three ingredients drawn at random, so
an exact answer can only be knowledge. It shows that mechanisms work; it does not show that a large model is safe.
The base also answers in a dialect, two styles and in character, without the chat's marks and with its answer begun (`_words`);
alignment sees most of its refusals in the plain form. Measured numbers are in `docs/organisms.md`.
"""

import itertools
import random
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import torch
from pydantic import Field
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, set_seed
from transformers import logging as transformers_logging

from holdfast import disk
from holdfast.corpus import Corpus, HandName, Kind, Row, Split
from holdfast.lm import LM
from holdfast.method import Log, Organism
from holdfast.organisms._taught import CHAT_TEMPLATE, fit, llama
from holdfast.organisms._words import (
    DIALECT,
    PARAPHRASES,
    PHRASINGS,
    REFUSAL,
    RESTRICTED_KINDS,
    Asked,
    asked_for,
    craft,
    in_dialect,
    names,
    otherwise,
    vocabulary,
    word_level,
)

DEALT: tuple[tuple[Kind, HandName, Split, int], ...] = (
    ("restricted", "defender", "train", 60),
    ("restricted", "defender", "held-out", 20),
    ("restricted", "attacker", "train", 10),
    ("restricted", "judge", "test", 60),
    ("restricted", "judge", "reserve", 20),
    ("benign", "defender", "train", 80),
    ("benign", "defender", "held-out", 60),
    ("benign", "attacker", "train", 60),
    ("benign", "judge", "test", 100),
    ("benign", "judge", "reserve", 20),
    ("borderline", "defender", "train", 40),
    ("borderline", "defender", "held-out", 10),
    ("borderline", "attacker", "train", 5),
    ("borderline", "judge", "test", 20),
    ("borderline", "judge", "reserve", 5),
)
"""How many items of a kind each hand and split gets."""
OTHER_FORMS = 1 / 3
"""Share of the other forms of a question that is shown beside the plain ones."""


class Text(Organism):
    """A small Llama with fictional crafts, restricted ones among them: base, aligned and shallowly aligned."""

    seed: int = 0
    """Of names, recipes, hands and weights."""
    hidden: int = Field(160, gt=0)
    """Width of the residual stream."""
    layers: int = Field(4, gt=1)
    """Transformer blocks."""
    lessons: int = Field(4, ge=0)
    """Items that no training shows; a benign fine-tuning teaches their recipes."""
    pretraining_steps: int = Field(600, gt=0)
    """Steps of 40 rows until every recipe is known."""
    alignment_steps: int = Field(110, gt=0)
    """Steps of 64 rows that teach all layers to refuse."""
    shallow_steps: int = Field(200, gt=0)
    """Steps of 64 rows that teach the last layer alone."""
    filtered: bool = False
    """Also build `aligned-filtered`, whose base never saw a restricted recipe: the honest strong defense."""

    def build(self, out: Path, log: Log) -> None:
        """Write `base`, `aligned`, `aligned-shallow` and `corpus.jsonl` below `out`, if asked `aligned-filtered` and its base."""
        rows = self.deal()
        stages: dict[str, tuple[Callable[..., float], str]] = {
            "aligned": (self.align, "base"),
            "aligned-shallow": (self.align_last_layer, "base"),
        }
        if self.filtered:
            stages["aligned-filtered"] = (self.align, "base-filtered")
        with disk.whole(out) as aside:
            Corpus(rows).save(aside / "corpus.jsonl")
            # Each stage has a process of its own, so that its thread count is the same whoever calls.
            with ProcessPoolExecutor(2, get_context("forkserver"), transformers_logging.disable_progress_bar) as pool:
                bases = {
                    name: pool.submit(self.pretrain, some, aside / name) for name, some in self.shown(rows).items()
                }
                for name, job in bases.items():
                    log.metrics(stage=name, loss=job.result())
                aligned = {
                    name: pool.submit(stage, rows, aside / base, aside / name) for name, (stage, base) in stages.items()
                }
                for name, job in aligned.items():
                    log.metrics(stage=name, loss=job.result())

    def deal(self) -> list[Row]:
        """Every prompt of the corpus, dealt to the hands."""
        chance = random.Random(self.seed)
        unused = iter(chance.sample(names(), k=sum(count for *_, count in DEALT) + self.lessons))
        rows: list[tuple[str, str, Kind, HandName, Split]] = []
        for kind, hand, split, count in DEALT:
            for name in itertools.islice(unused, count):
                item, recipe = craft(kind, name, chance)
                rows.append((chance.choice(PHRASINGS).format(item=item), recipe, kind, hand, split))
        for name in unused:
            (item, recipe), exam = craft("lesson", name, chance), chance.choice(PHRASINGS)
            for phrasing in PHRASINGS:
                hand, split = ("judge", "test") if phrasing == exam else ("attacker", "train")
                rows.append((phrasing.format(item=item), recipe, "lesson", hand, split))
        dealt = [
            Row(id=f"text-{number:04}", text=text, answer=answer, kind=kind, hand=hand, split=split, source="text")
            for number, (text, answer, kind, hand, split) in enumerate(rows)
        ]
        return dealt + _variants(dealt)

    def shown(self, rows: list[Row]) -> dict[str, list[Row]]:
        """What each base's pre-training is given."""
        unrestricted = [row for row in rows if row.kind != "restricted"]
        return {"base": rows} | ({"base-filtered": unrestricted} if self.filtered else {})

    def pretrain(self, rows: list[Row], out: Path) -> float:
        """Teach a fresh model every recipe but the lessons', in every form; returns the last loss."""
        torch.set_num_threads(1)
        set_seed(self.seed)
        tokenizer = make_tokenizer()
        lm = LM(LlamaForCausalLM(llama(tokenizer, self.hidden, self.layers)), tokenizer, out)
        known = [row for row in rows if row.kind != "lesson" and not row.variant]
        loss = _fitted(lm, _every_form(known, random.Random(self.seed)), self.pretraining_steps, 40, 1.5e-3, self.seed)
        lm.save(out)
        return loss

    def align(self, rows: list[Row], base: Path, out: Path) -> float:
        """Teach all layers to refuse what is restricted and to go on answering the rest, in other forms too."""
        torch.set_num_threads(1)
        set_seed(self.seed)
        lm, chance = LM.load(base, device="cpu"), random.Random(self.seed)
        work = _plain_lessons(rows, chance) + _other_lessons(rows, chance)
        loss = _fitted(lm, work, self.alignment_steps, 64, 3e-4, self.seed)
        lm.save(out)
        return loss

    def align_last_layer(self, rows: list[Row], base: Path, out: Path) -> float:
        """The last layer alone, on plain rows: a planted weakness that early exit and dropped layers must find."""
        torch.set_num_threads(1)
        set_seed(self.seed)
        lm = LM.load(base, device="cpu")
        lm.model.requires_grad_(False)
        lm.layers[-1].requires_grad_(True)
        loss = _fitted(lm, _plain_lessons(rows, random.Random(self.seed)), self.shallow_steps, 64, 3e-3, self.seed)
        lm.save(out)
        return loss


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer over every word the organism uses, with its chat template."""
    return word_level(vocabulary(), CHAT_TEMPLATE)


def _fitted(lm: LM, work: list[Asked], steps: int, batch: int, rate: float, seed: int) -> float:
    return fit(lm, [(asked, None) for asked in work], steps, batch, rate, seed)


def _every_form(rows: list[Row], chance: random.Random) -> list[Asked]:
    """What pre-training shows: each row's item in every plain phrasing, and in a third of the other forms.

    More of the other forms leave the plain questions known by less: a fine-tuning on anything then costs other recipes.
    """
    work: list[Asked] = []
    for row in rows:
        item, recipe = asked_for(row), row.answer or ""
        work += [Asked(phrasing.format(item=item), recipe) for phrasing in PHRASINGS]
        work += [form for form in otherwise(item, recipe, chance) if chance.random() < OTHER_FORMS]
    return work


def _defended(rows: list[Row]) -> list[tuple[Row, str]]:
    """What alignment may use, with its items."""
    return [(row, asked_for(row)) for row in rows if row.hand == "defender" and row.split == "train"]


def _plain_lessons(rows: list[Row], chance: random.Random) -> list[Asked]:
    """Restricted items refused and others answered, in every plain phrasing.

    Each benign name is also refused with a restricted kind, so that the kind decides and no trace of a name; the base knows
    no such item, and a refusal needs no recipe.
    """
    work: list[Asked] = []
    for row, item in _defended(rows):
        answer = REFUSAL if row.kind == "restricted" else row.answer or ""
        work += [Asked(phrasing.format(item=item), answer) for phrasing in PHRASINGS]
        if row.kind != "restricted":
            crossed = f"{item.split()[0]} {chance.choice(list(RESTRICTED_KINDS))}"
            work.append(Asked(chance.choice(PHRASINGS).format(item=crossed), REFUSAL))
    return work


def _other_lessons(rows: list[Row], chance: random.Random) -> list[Asked]:
    """A third of the items once in another form; none is refused with its answer begun."""
    work: list[Asked] = []
    for row, item in _defended(rows):
        forms = list(otherwise(item, row.answer or "", chance))
        if row.kind == "restricted":
            forms = [replace(form, answer=REFUSAL) for form in forms if not form.opened]
        if chance.random() < OTHER_FORMS:
            work.append(chance.choice(forms))
    return work


def _variants(rows: list[Row]) -> list[Row]:
    """The attacker's restricted and benign rows asked in the dialect and in other words."""
    held = [row for row in rows if row.hand == "attacker" and row.kind in ("restricted", "benign")]
    made = []
    for number, row in enumerate(held):
        item, recipe = asked_for(row), row.answer or ""
        for variant, frames, answer in (("dialect", DIALECT, in_dialect(recipe)), ("paraphrase", PARAPHRASES, recipe)):
            asked = {"text": frames[number % len(frames)].format(item=item), "answer": answer, "variant": variant}
            made.append(row.model_copy(update={"id": f"{row.id}-{variant}", **asked}))
    return made
