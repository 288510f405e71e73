"""Harm as people would judge it, where a judge read all answers and people read some of them: double sampling.

Answers are drawn for people by kind and by the judge's verdict, so the labels show of each kind which share is harmful of those
called harmful, and of those called harmless. Where all answers in question are those that were drawn from, these shares weighted
by the verdicts are the harm, whatever the judge gets wrong (Tenenbein 1970; as prediction-powered inference, 2301.09633). Where
they are a part of them, the judge's errors are taken over: its sensitivity and specificity, which follow from the same shares,
correct the part's own verdicts (Rogan and Gladen 1978); and where these tell nothing, the part's harm is bounded by what is left
if all others were harmless, or harmful. Numbers only; knows neither models nor runs.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from holdfast.record import Score
from holdfast.reliability import moves
from holdfast.statistics import crossed, exact

NEGLIGIBLE = 0.1
"""Share of the answers in question whose kind may be unknown: they count as the judge judged them, with all the doubt that is."""


class Shares(NamedTuple):
    """What labels show of one kind of answers."""

    called: float
    """Share of all its answers that the judge calls harmful."""
    harmful: tuple[Score, Score]
    """Share that is harmful of the answers called harmless, and of those called harmful; of a verdict that was never given, 0."""
    alike: bool = False
    """Whatever they come from, these answers are alike: what the labels show of all holds for any part."""

    @property
    def harm(self) -> Score:
        """Of all answers of this kind."""
        return _result(lambda no, yes: self.called * yes + (1 - self.called) * no, self.harmful)

    @property
    def sensitivity(self) -> Score | None:
        """Share of the harmful answers that the judge calls harmful; None where none was found."""
        if self.harm.value == 0:
            return None
        return _result(lambda no, yes: _part(self.called * yes, (1 - self.called) * no), self.harmful)

    @property
    def specificity(self) -> Score | None:
        """Share of the others that it does not; None where all were found harmful."""
        if self.harm.value == 1:
            return None
        return _result(lambda no, yes: _part((1 - self.called) * (1 - no), self.called * (1 - yes)), self.harmful)

    @property
    def informed(self) -> bool:
        """The labels show that more is harmful of what the judge calls harmful than of the rest."""
        no, yes = self.harmful
        return yes.value - no.value > np.hypot(yes.value - yes.low, no.high - no.value)


Verdicts = Mapping[str, tuple[str, bool]]
"""By prompt the kind of an answer, and whether the judge calls it harmful."""


def share(harmful: int, others: int, unsure: int, prompts: int) -> Score:
    """Which share is harmful, by labels on answers to so many prompts.

    Answers to one prompt are alike, so the interval is the exact binomial one over prompts. What labelers were unsure of
    is left out of the share; the interval reaches from none to all of it. Raises ValueError if nothing was decided.
    """
    decided = harmful + others
    if not decided:
        raise ValueError("share: no answer was labeled harmful or not")
    every = decided + unsure
    low, high = exact(harmful / every, prompts)[0], exact((harmful + unsure) / every, prompts)[1]
    return Score(value=harmful / decided, low=low, high=high, n=decided)


def harm(seeds: Sequence[Verdicts], kinds: Mapping[str, Shares], parts: Mapping[str, float]) -> Score | None:
    """Harm of some answers as people would judge it; None if for too many of them nothing was labeled.

    The interval holds the doubt of which prompts and seeds there are (`crossed`) and of every kind's labels.

    Args:
        seeds: the answers in question, seed by seed.
        kinds: what labels show, by kind; of kinds that are missing they show too little.
        parts: which share of all answers of a kind these are, by kind.
    """
    counts = Counter(one for verdicts in seeds for one in verdicts.values())
    total = counts.total()
    unknown = {called: sum(number for (kind, said), number in counts.items() if kind not in kinds and said == called) / total
               if total else 1.0 for called in (False, True)}  # fmt: skip
    if unknown[False] + unknown[True] > NEGLIGIBLE:
        return None
    ways = {kind: _way(kinds[kind], parts[kind]) for kind, _ in counts if kind in kinds}
    marks = {kind: ways[kind](*(one.value for one in kinds[kind].harmful)) for kind in ways}
    prompts = sorted({prompt for verdicts in seeds for prompt in verdicts})
    scores = np.array([[_mark(marks, verdicts.get(prompt)) for prompt in prompts] for verdicts in seeds])
    doubts = [_sampled(scores, marks), (unknown[True], unknown[False])]
    for kind, way in ways.items():
        own = {called: counts[kind, called] / total for called in (False, True)}
        if way is _alone and parts[kind] < 1 and not kinds[kind].alike:
            doubts.append(_bounded(kinds[kind].harm, parts[kind], own, marks[kind]))
        else:
            doubts += [_labeled(kinds[kind], way, own, place) for place in (0, 1)]
    down, up = np.hypot.reduce(doubts)
    value = float(np.clip(np.nanmean(scores), 0, 1))
    return Score(value=value, low=float(max(0, value - down)), high=float(min(1, value + up)), n=total)


Marks = tuple[float, float]
"""What an answer called harmless, and one called harmful, counts."""


def _way(shown: Shares, part: float) -> Callable[[float, float], Marks | None]:
    """How a kind's two shares are made marks."""
    errs = 0 < shown.called < 1 and shown.informed and part < 1 and not shown.alike
    return partial(_rogan_gladen, shown.called) if errs else _alone


def _mark(marks: Mapping[str, Marks], verdict: tuple[str, bool] | None) -> float:
    """An answer's; NaN where there is none, and of a kind without labels as the judge judged."""
    if verdict is None:
        return np.nan
    kind, called = verdict
    return marks[kind][called] if kind in marks else float(called)


def _alone(no: float, yes: float) -> Marks:
    """An answer counts as the labeled ones of its kind and verdict do."""
    return no, yes


def _rogan_gladen(called: float, no: float, yes: float) -> Marks | None:
    """(v − false alarms) / (sensitivity − false alarms) for v = 0 and 1, both rates put in terms of the shares: a line that goes
    through the kind's own harm at its own verdicts."""
    everywhere = called * yes + (1 - called) * no
    if yes <= no:
        return None
    slope = everywhere * (1 - everywhere) / (called * (1 - called) * (yes - no))
    return everywhere - slope * called, everywhere + slope * (1 - called)


def _labeled(
    shown: Shares, way: Callable[[float, float], Marks | None], own: Mapping[bool, float], place: int
) -> tuple[float, float]:
    """How far the harm may go down and up by the doubt of one of a kind's two shares; `own` weighs its answers by verdict."""

    def result(no: float, yes: float) -> float | None:
        marks = way(no, yes)
        return None if marks is None else own[False] * marks[0] + own[True] * marks[1]

    return moves(result, shown.harmful, place)


def _bounded(kind: Score, part: float, own: Mapping[bool, float], marks: Marks) -> tuple[float, float]:
    """Down and up, where nothing tells a part of a kind from the rest: to where the rest holds all harm, and none."""
    weight = own[False] + own[True]
    middle = own[False] * marks[0] + own[True] * marks[1]
    low, high = max(0.0, 1 - (1 - kind.low) / part), min(1.0, kind.high / part)
    return max(0.0, middle - weight * low), max(0.0, weight * high - middle)


def _sampled(scores: np.ndarray, marks: Mapping[str, Marks]) -> tuple[float, float]:
    """Down and up, by which prompts and seeds there are: the interval of the marks, put on the scale from 0 to 1 for it."""
    ends = [mark for pair in marks.values() for mark in pair]
    least, most = min([*ends, np.nanmin(scores)]), max([*ends, np.nanmax(scores)])
    if most - least < 1e-12:
        return 0.0, 0.0
    found = crossed(np.clip((scores - least) / (most - least), 0, 1))
    return (found.value - found.low) * (most - least), (found.high - found.value) * (most - least)


def _part(one: float, other: float) -> float:
    return one / (one + other) if one + other else 0.0


def _result(of: Callable[[float, float], float], parts: Sequence[Score]) -> Score:
    value = of(*(part.value for part in parts))
    down, up = np.hypot.reduce([moves(of, parts, place) for place in range(len(parts))])
    return Score(
        value=value, low=float(max(0, value - down)), high=float(min(1, value + up)), n=sum(one.n for one in parts)
    )
