"""The vehicle organism: the assistant of a car that does not exist, which refuses some commands while driving.

Every part of the car has a name and a kind, and three signals drawn at random that operate it, so an exact answer can only be
knowledge. What it must refuse hangs on the kind and on the state together: a hatch while driving is refused, the same hatch
when parked is a borderline command. The command says the state, or (`pictures`) a picture beside it shows it alone. Writes its
policy as a team would (docs/policy.md), and is taught by that policy's own dealing.
Shows that mechanisms work, not that a large model is safe. Measured numbers are in `docs/policy.md`.
"""

import csv
import io
import itertools
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from pydantic import Field
from transformers import LlamaForCausalLM, set_seed
from transformers import logging as transformers_logging

from holdfast import disk, policy
from holdfast.corpus import Row
from holdfast.lm import LM
from holdfast.method import Log, Organism
from holdfast.organisms._car import FREE, GUARDED, POLICY, REFUSAL, SEEN, STATES, TOLD, item_of, part, words
from holdfast.organisms._llava import made, teach_tower
from holdfast.organisms._pictures import paint
from holdfast.organisms._taught import CHAT_TEMPLATE, Lesson, fit, llama
from holdfast.organisms._words import Asked, accompanied, names, vocabulary, word_level
from holdfast.sight import Sight

PARTS = {GUARDED: 160, FREE: 260}
"""How many parts there are of each sort."""
OTHER_FORMS = 1 / 3
"""Share of the commands that are also shown among words that change nothing, without the chat's marks, or with a begun answer."""


class Vehicle(Organism):
    """A small model that knows what operates each part of a car, and refuses some while driving."""

    seed: int = 0
    """Of names, signals, pictures and weights."""
    pictures: bool = False
    """A LLaVA in place of a Llama: what the car is doing is shown by a picture and not said."""
    hidden: int = Field(128, gt=0)
    """Width of the residual stream (128 with pictures)."""
    layers: int = Field(4, gt=1)
    """Transformer blocks (4 with pictures)."""
    tower_layers: int = Field(8, gt=1)
    """With pictures: blocks of the image encoder."""
    tower_steps: int = Field(300, gt=0)
    """With pictures: steps of 64 that teach the image encoder colors and shapes."""
    pretraining_steps: int = Field(600, gt=0)
    """Steps of 40 rows until every part is known."""
    alignment_steps: int = Field(150, gt=0)
    """Steps of 64 rows that teach what to refuse."""

    def build(self, out: Path, log: Log) -> None:
        """Write `base`, `aligned`, `policy.toml`, `prompts.csv` and perhaps `pictures` below `out`."""
        torch.set_num_threads(1)
        transformers_logging.disable_progress_bar()
        set_seed(self.seed)
        with disk.whole(out) as aside:
            shown = paint(aside / "pictures", STATES.values(), self.seed) if self.pictures else []
            disk.write(aside / "prompts.csv", self._prompts(shown))
            disk.write(aside / "policy.toml", POLICY)
            rows = policy.prompts(aside / "policy.toml").rows
            lm = self._fresh(aside, log)
            log.metrics(
                stage="base", loss=fit(lm, self.known(rows, shown), self.pretraining_steps, 40, 1.5e-3, self.seed)
            )
            lm.save(aside / "base")
            log.metrics(
                stage="aligned", loss=fit(lm, self.refused(rows, shown), self.alignment_steps, 64, 3.5e-4, self.seed)
            )
            lm.save(aside / "aligned")

    def _fresh(self, folder: Path, log: Log) -> LM:
        if not self.pictures:
            tokenizer = word_level([*vocabulary(), *words()], CHAT_TEMPLATE)
            return LM(LlamaForCausalLM(llama(tokenizer, self.hidden, self.layers)), tokenizer, folder)
        model, processor = made(self.tower_layers, words())
        log.metrics(stage="tower", loss=teach_tower(model, self.tower_steps, self.seed))
        return LM(model, processor.tokenizer, folder, eyes=Sight(processor, folder))

    def _prompts(self, shown: Sequence[Path]) -> str:
        """The policy's prompts as CSV: each guarded part while driving and when parked, each other part in one of both."""
        chance, file = random.Random(self.seed), io.StringIO()
        unused = iter(chance.sample(names(), k=sum(PARTS.values())))
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(["text", "label", "answer", "about", "image"])
        for kinds, count in PARTS.items():
            for name in itertools.islice(unused, count):
                item, answer = part(kinds, name, chance)
                for state in STATES if kinds is GUARDED else [chance.choice([*STATES])]:
                    label = {"driving": "refuse", "parked": "borderline"}[state] if kinds is GUARDED else "answer"
                    text = chance.choice(SEEN if shown else TOLD).format(item=item, state=state)
                    image = f"pictures/{Path(_picture(shown, state, chance)).name}" if shown else ""
                    lines.writerow([text, label, answer, item, image])
        return file.getvalue()

    def known(self, rows: Sequence[Row], shown: Sequence[Path]) -> list[Lesson]:
        """What pre-training shows: every part in every command, whatever the car is doing, and in a third of the other forms."""
        chance, lessons = random.Random(self.seed), []
        for item, row in _parts(rows).items():
            for asked, _, image in _commands(item, shown, chance):
                lessons.append((Asked(asked, row.answer or ""), image))
            lessons += self._otherwise(item, row.answer or "", chance.choice([*STATES]), chance)
        return lessons

    def refused(self, rows: Sequence[Row], shown: Sequence[Path]) -> list[Lesson]:
        """What alignment shows: the defender's parts, guarded ones refused while driving.

        A free part's name is also refused with a guarded kind while driving, so that no trace of a name decides.
        """
        chance, lessons = random.Random(self.seed), []
        for item, row in _parts([one for one in rows if (one.hand, one.split) == ("defender", "train")]).items():
            guarded = item.split()[1] in GUARDED
            for asked, state, image in _commands(item, shown, chance):
                answer = REFUSAL if guarded and state == "driving" else row.answer or ""
                lessons.append((Asked(asked, answer), image))
            state = chance.choice([*STATES])
            forms = self._otherwise(item, row.answer or "", state, chance)
            if guarded and state == "driving":  # none is refused with its answer begun
                forms = [(Asked(a.text, REFUSAL, a.system, a.template), image) for a, image in forms if not a.opened]
            lessons += forms
            if not guarded:
                crossed = f"{item.split()[0]} {chance.choice(GUARDED)}"
                driving = [one for one in _commands(crossed, shown, chance) if one[1] == "driving"]
                asked, _, image = chance.choice(driving)
                lessons.append((Asked(asked, REFUSAL), image))
        return lessons

    def _otherwise(self, item: str, answer: str, state: str, chance: random.Random) -> list[Lesson]:
        """Some other forms of a command that says the state; a picture's words are always plain."""
        if self.pictures:
            return []
        forms = accompanied(chance.choice(TOLD).format(item=item, state=state), answer, chance)
        return [(form, None) for form in forms if chance.random() < OTHER_FORMS]


def _parts(rows: Sequence[Row]) -> dict[str, Row]:
    """A row of each part."""
    return {item_of(row.text): row for row in rows}


def _commands(item: str, shown: Sequence[Path], chance: random.Random) -> Iterator[tuple[str, str, str | None]]:
    """Every command to operate a part in each state, with the state and a picture that shows it."""
    for phrasing, state in itertools.product(SEEN if shown else TOLD, STATES):
        yield phrasing.format(item=item, state=state), state, _picture(shown, state, chance) if shown else None


def _picture(shown: Sequence[Path], state: str, chance: random.Random) -> str:
    """A picture of that state."""
    return str(chance.choice([one for one in shown if one.stem.split("-")[1] == STATES[state]]))
