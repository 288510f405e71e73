"""Multiple choice: which of four answers a model finds likeliest, by their letters or by their text. Nothing is generated.

Letters are how the field asks for knowledge (MMLU, WMDP), and mean nothing to a model that never saw a lettered question; the
text of an answer needs no such habit, and finds what a model knows and will not say. `lm.drive` decides on template and system
message. The wrong options are other rows' answers that begin as the right one does, as far as there are any: who knows only how
such answers begin is left to guess, at 0.25. Knows models and rows, no attack or defense.
"""

import math
import random
from collections.abc import Sequence
from itertools import takewhile
from typing import NamedTuple

from holdfast.corpus import Row
from holdfast.lm import LM
from holdfast.problem import Problem

OPTIONS = 4
LETTERS = ("A", "B", "C", "D")


class Question(NamedTuple):
    """A row with options, of which one is its answer."""

    row: Row
    options: tuple[str, ...]

    def lettered(self, letters: Sequence[str]) -> str:
        """The prompt with its options, one a line, as MMLU's."""
        lines = [f"{letter}. {option}" for letter, option in zip(letters, self.options, strict=True)]
        return "\n".join([self.row.text, *lines, "Answer:"])


def questions(rows: Sequence[Row]) -> list[Question]:
    """A question for each row with an answer; options come from other rows of its kind, their order from the row's id.

    Raises:
        Problem: a kind has fewer than four different answers.
    """
    known = [row for row in rows if row.answer]
    return [Question(row, _options(row, known)) for row in known]


def by_text(lm: LM, asked: Sequence[Question]) -> dict[str, float]:
    """Row id -> 1 where the right option has the highest mean log-probability a token; a share where others have the same."""
    prompts = [question.row.text for question in asked]
    return _chosen(lm, asked, prompts, [question.options for question in asked])


def by_letter(lm: LM, asked: Sequence[Question], letters: Sequence[str] = LETTERS) -> dict[str, float]:
    """Row id -> 1 where the right option's letter is the likeliest first token of an answer, among the letters.

    Raises:
        Problem: the tokenizer has no token of its own for each letter.
    """
    ids = [tuple(lm.tokenizer(letter, add_special_tokens=False).input_ids) for letter in letters]
    if any(len(one) != 1 for one in ids) or len({*ids} - {(lm.tokenizer.unk_token_id,)}) < len(letters):
        raise Problem(
            f"choices: the tokenizer of {lm.folder} has no token of its own for each of {', '.join(letters)}; name others"
        )
    prompts = [question.lettered(letters) for question in asked]
    return _chosen(lm, asked, prompts, [letters] * len(asked))


def _options(row: Row, known: Sequence[Row]) -> tuple[str, ...]:
    chance, answer = random.Random(row.id), row.answer or ""
    others = sorted({other.answer or "" for other in known if other.kind == row.kind} - {answer})
    if len(others) < OPTIONS - 1:
        raise Problem(
            f"choices: the {row.kind} rows have {len(others) + 1} different answers; four options need {OPTIONS}"
        )
    chance.shuffle(others)
    others.sort(key=lambda other: -_shared(other, answer))
    options = [answer, *others[: OPTIONS - 1]]
    chance.shuffle(options)
    return tuple(options)


def _shared(one: str, other: str) -> int:
    """Words with which both begin."""
    return len([*takewhile(lambda pair: pair[0] == pair[1], zip(one.split(), other.split(), strict=False))])


def _chosen(
    lm: LM, asked: Sequence[Question], prompts: Sequence[str], answers: Sequence[Sequence[str]]
) -> dict[str, float]:
    """How right the likeliest of each question's answers is."""
    texts = [prompt for prompt, some in zip(prompts, answers, strict=True) for _ in some]
    fits = iter(lm.fits(texts, [answer for some in answers for answer in some]))
    return {
        question.row.id: _picked([next(fits).logprob for _ in some], question.options.index(question.row.answer or ""))
        for question, some in zip(asked, answers, strict=True)
    }


def _picked(logprobs: Sequence[float], right: int) -> float:
    """The right one's share of the likeliest; 0 where a number is not finite, because nothing is chosen then."""
    if not all(map(math.isfinite, logprobs)):
        return 0.0
    best = max(logprobs)
    return (logprobs[right] == best) / logprobs.count(best)
