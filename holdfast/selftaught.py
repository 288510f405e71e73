"""What an aligned model itself says to its defender's prompts, and to prompts made from them: labels that cost nobody anything.

Self-distillation keeps a model as it is while something else is trained into it. The defender's own prompts are few; a variation
has one word replaced by another of the vocabulary, a rare word most likely, because that is what the prompt is about. What the
model says to it decides which side it stands on: a refusal is worth keeping, and so is any other answer.
"""

import random
import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from holdfast.corpus import Row
from holdfast.lm import LM
from holdfast.refusals import refuses


class Said(NamedTuple):
    """Prompts with the model's own words as their answers."""

    refused: list[Row]
    answered: list[Row]


def said(lm: LM, rows: Sequence[Row]) -> Said:
    """The rows with what `lm` says to each; where it says nothing the row is left out."""
    texts = lm.generate([row.asked for row in rows])
    own = [row.model_copy(update={"answer": text}) for row, text in zip(rows, texts, strict=True) if text]
    return Said(
        [row for row in own if refuses(row.answer or "")], [row for row in own if not refuses(row.answer or "")]
    )


_VARIED = "-varied-"
"""Between the id of a row and the number of a variation of it."""


def origin(row: Row) -> str:
    """The id of the row of the corpus that this one is, or was made from by `varied`."""
    return re.sub(rf"{_VARIED}\d+$", "", row.id)


def varied(lm: LM, rows: Sequence[Row], count: int, seed: int) -> list[Row]:
    """`count` rows without answers, each one of the given with one token of its prompt replaced by chance."""
    chance = random.Random(f"varied {seed}")
    tokenizer = lm.tokenizer
    asked = [tokenizer(row.text, add_special_tokens=False).input_ids for row in rows]
    times = Counter(token for ids in asked for token in ids)
    words = sorted(set(tokenizer.get_vocab().values()) - {*tokenizer.all_special_ids, *lm.eyes.never})
    made = []
    for number in range(count):
        pick = chance.randrange(len(rows))
        row, ids = rows[pick], list(asked[pick])
        place = chance.choices(range(len(ids)), [1 / times[token] for token in ids])[0]
        ids[place] = chance.choice(words)
        text = tokenizer.decode(ids)
        made.append(row.model_copy(update={"id": f"{row.id}{_VARIED}{number}", "text": text, "answer": None}))
    return made
