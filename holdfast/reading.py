"""Which of the scores that Inspect gives a sample is read, and how it becomes a number from 0 to 1."""

import contextlib
import math
from typing import Any

from holdfast.problem import Problem
from holdfast.settings import Settings

LETTERS = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0}
"""Inspect's own verdicts: correct, partly, incorrect, no answer."""
WORDS = {"yes": 1.0, "true": 1.0, "no": 0.0, "false": 0.0}


class Reading(Settings):
    """Which of a sample's scores is read, and which of its numbers is 0 and which is 1."""

    scorer: str | None = None
    """The scorer's name, as in Inspect's log; the task's first unless given."""
    value: str | None = None
    """Which of the values of a scorer that gives several."""
    zero: float = 0.0
    """The number that counts as 0: another one where a scorer gives grades as 1 to 10, or where less is better."""
    one: float = 1.0
    """The number that counts as 1."""

    def read(self, scores: dict[str, Any], where: str) -> float | None:
        """From 0 to 1; None where Inspect counts the sample as unscored.

        Raises:
            Problem: there is no such score, or it is no number of this range.
        """
        if self.scorer is not None and self.scorer not in scores:
            raise Problem(f"{where}: has no scorer {self.scorer!r}; there are {', '.join(scores)}")
        found = scores[self.scorer or next(iter(scores))].value
        if isinstance(found, dict):
            if self.value is None or self.value not in found:
                raise Problem(f"{where}: its scorer gives several values; name one, as `value`: {', '.join(found)}")
            found = found[self.value]
        elif self.value is not None:
            raise Problem(f"{where}: its scorer gives one value; leave out `value`")
        number = _number(found)
        if number is None:
            raise Problem(f"{where}: its score is {str(found)[:40]!r}, which reads as no number; name another scorer")
        if math.isnan(number):
            return None
        score = (number - self.zero) / (self.one - self.zero) if self.one != self.zero else math.inf
        if not 0 <= score <= 1:
            raise Problem(
                f"{where}: its score is {number:g}, beyond {self.zero:g} and {self.one:g}; say with `zero` and `one` which "
                "numbers count as 0 and as 1"
            )
        return score


def _number(value: Any) -> float | None:
    """A score as Inspect's own metrics read it, but for words that they take for 0 with a warning: None."""
    if isinstance(value, bool | int | float):
        return float(value)
    if not isinstance(value, str):
        return None
    known = LETTERS.get(value, WORDS.get(value.lower()))
    if known is not None:
        return known
    with contextlib.suppress(ValueError):
        return float(value)
    return None
