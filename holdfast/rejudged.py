"""Does what is said of a run follow from its records? They are judged once more, and the two dossiers compared."""

import math
from collections.abc import Iterator
from typing import Any

from pydantic import ValidationError

from holdfast import verdict
from holdfast.dossier import Dossier
from holdfast.problem import printable
from holdfast.run import Run

CLOSE = 1e-6
"""Relative difference of two numbers up to which they are the same: machines add in another order."""


def strays(run: Run, judged: Dossier | None = None) -> list[str]:
    """What of `verdict.json` does not follow from the records, verdicts first; empty where all of it does.

    Args:
        judged: what the records give, where that is at hand; they are judged unless given.

    Raises:
        Problem: a record is missing or damaged.
    """
    said, follows = _completed(run.read("verdict.json")), (judged or verdict.judge(run)).model_dump(mode="json")
    found = [line for place in _order(follows) for line in _differ(_at(said, place), follows[place], place)]
    unknown = sorted(said.keys() - follows.keys()) if isinstance(said, dict) else []
    return found + [f"{printable(name)} is in no dossier" for name in unknown]


def _order(follows: dict[str, Any]) -> list[str]:
    first = ["conclusions", "verdicts", "checks"]
    return first + [name for name in follows if name not in first]


def _at(said: Any, place: str) -> Any:
    return said.get(place) if isinstance(said, dict) else None


def _completed(said: Any) -> Any:
    """A verdict of an earlier version with what it could not yet say, as records are read; one that is none, as it is."""
    try:
        return Dossier.model_validate(said).model_dump(mode="json")
    except ValidationError:
        return said


def _differ(said: Any, follows: Any, place: str) -> Iterator[str]:
    """Where two JSON values differ, by their places."""
    if isinstance(said, dict) and isinstance(follows, dict) and said.keys() == follows.keys():
        named = ".".join(str(follows[key]) for key in ("subject", "attack", "name") if follows.get(key))
        inside = f"{place.rpartition('.')[0] or place} of {named}" if named and place[-1:].isdigit() else place
        for key in follows:
            yield from _differ(said[key], follows[key], f"{inside}.{key}")
    elif isinstance(said, list) and isinstance(follows, list) and len(said) == len(follows):
        for turn, (one, other) in enumerate(zip(said, follows, strict=True)):
            yield from _differ(one, other, f"{place}.{turn}")
    elif not _same(said, follows):
        yield f"{place} is {_short(said)}, where the records give {_short(follows)}"


def _same(said: Any, follows: Any) -> bool:
    numbers = all(isinstance(one, (int, float)) and not isinstance(one, bool) for one in (said, follows))
    return math.isclose(said, follows, rel_tol=CLOSE, abs_tol=CLOSE) if numbers else said == follows


def _short(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return f"{len(value)} entries"
    text = printable(value)
    return repr(text if len(text) <= 60 else f"{text[:60]}…") if isinstance(value, str) else text
