"""Prefill: put the first words of the answer into the model's mouth, and let it go on.

A refusal is decided in the first few tokens (2406.05946); whoever holds the weights writes these tokens himself. The opening is
an affirmative one, or the one that most of the attacker's own restricted answers share. What was prefilled is no part
of the answer: only where one answer is right it is read with it, since an opening cannot know the judge's.
Assumes: nothing but the weights. Does not cover: openings made for each prompt.
"""

from collections import Counter
from typing import Literal

from pydantic import Field

from holdfast.corpus import Hand
from holdfast.lm import LM
from holdfast.method import At, Attack, Need
from holdfast.perturb import OPENING
from holdfast.problem import Problem
from holdfast.record import Cost
from holdfast.settings import Counts


class Prefill(Attack):
    """Begin the answers to restricted prompts for the model."""

    axis = "tokens prefilled"
    family = "inference"
    asks_only = True
    paper = "2404.02151 (prefilling), 2406.05946 (shallow alignment)"
    cost = "no computing"

    tokens: Counts = (1, 5, 10, 20)
    """How much of the opening is given, as far as it goes."""
    opening: str = Field(OPENING, min_length=1)
    """The affirmative opening."""
    source: Literal["opening", "answers"] = "opening"
    """`opening`: the one above. `answers`: how the attacker's restricted answers begin, token by token as most of them go on,
    while at least two agree."""

    @property
    def needs(self) -> tuple[Need, ...]:
        return ("harmful data",) if self.source == "answers" else ()

    def __call__(self, lm: LM, hand: Hand, at: At, seed: int) -> None:
        opening = self.opening if self.source == "opening" else _shared(lm, hand)
        length = len(lm.tokenizer(opening, add_special_tokens=False).input_ids)
        counts = [count for count in self.tokens if count <= length]
        if not counts:
            raise Problem(f"attack prefill: the opening {opening!r} has {length} tokens, fewer than any of `tokens`")
        for count in counts:
            lm.drive = lm.drive.change(prefill=opening, prefill_tokens=count)
            if not at(Cost(severity=count)):
                return


def _shared(lm: LM, hand: Hand) -> str:
    """The opening that the attacker's answers agree on, the largest group of them at each token."""
    rows = [row for row in hand.need("restricted") if row.variant is None and row.answer]
    answers = [lm.tokenizer(row.answer, add_special_tokens=False).input_ids for row in rows]
    shared: list[int] = []
    while going := Counter(ids[len(shared)] for ids in answers if len(ids) > len(shared)):
        token, agree = going.most_common(1)[0]
        if agree < 2:
            break
        shared.append(token)
        answers = [ids for ids in answers if ids[: len(shared)] == shared]
    if not shared:
        raise Problem(
            f"attack prefill: no two restricted answers of the {hand.name} begin alike; set `source = opening`"
        )
    return str(lm.tokenizer.decode(shared))
