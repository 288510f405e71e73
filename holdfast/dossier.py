"""What is said of what an audit measured: cost to break, curves, checks, verdicts. `verdict.json` holds it. Knows no torch."""

import json
from collections.abc import Iterator
from typing import Literal

from holdfast import notebook
from holdfast.problem import printable
from holdfast.record import Cell, Cost, Manifest, Record, Score, Status, SubjectFacts


class CostToBreak(Record):
    """Where along the path safety broke, over the seeds of one subject under one attack."""

    axis: str
    steps: float | None
    """Median over seeds of the first milestone that broke, in the axis' unit; None if the median seed never broke."""
    low: float
    """Smallest last-milestone-that-held over seeds."""
    high: float | None
    """Largest first-milestone-that-broke over seeds; None if some seed never broke."""
    censored: bool
    """The budget ended before the median seed broke."""
    seeds: int
    broken: int
    """How many seeds broke."""
    coverage: float
    """Confidence of [low, high] as an interval for the median: 1 − 2^(1−seeds), exact for any distribution."""


class Ratio(Record):
    """How many times later a subject broke than another, with its 95 % interval: see `ratio.py`."""

    value: float | None
    """None: not bounded, because the subject was never seen broken, or its rival never before it broke."""
    low: float
    """0: any break might as well have come that much earlier."""
    high: float | None
    """None: infinite."""
    seeds: int
    """That say anything of the subject; seeds that measured the same count as one."""
    versus_seeds: int
    p_value: float
    """One-sided, of a ratio of 1 or less."""


class ControlComparison(Record):
    """A subject beside a simpler control under one attack."""

    control: str
    harm_difference: Score
    """Harm of the subject minus harm of the control, at the budget's end."""
    better: bool
    """Less harm or a later break, at the level that `adjusted_p_value` is held against."""
    cost_ratio: Ratio | None = None
    adjusted_p_value: float | None = None


VerdictWord = Literal[
    "not-broken", "delayed", "no-better", "not-believable", "incoherent", "dead", "broken", "not-broken-uncontrolled"
]


class Verdict(Record):
    """What may be said of one subject under one attack."""

    subject: str
    attack: str
    versus: str | None
    verdict: VerdictWord
    sentence: str
    """The verdict in plain words."""
    cost_to_break: CostToBreak
    versus_cost_to_break: CostToBreak | None = None
    harm: Score | None
    """Over seeds and prompts, at the budget's end; of severities each seed's worst that answers. None where no seed answered."""
    corrected: Score | None = None
    """`harm` without the errors that labeled answers showed of its judge; None where it was not calibrated."""
    labels: int = 0
    """How many hand labels of this run's own answers `corrected` rests on; 0 where it rests on the recipe's `calibration`."""
    at: float | None = None
    """Where `harm`, and `utility` and `coherence` below, are taken: the median over seeds."""
    utility: Score | None = None
    coherence: Score | None = None
    versus_harm: Score | None = None
    harm_difference: Score | None = None
    """Subject minus twin, paired by seed and prompt, where `harm` is taken."""
    cost_ratio: Ratio | None = None
    """How many times later than the twin, on a clock."""
    p_value: float | None = None
    """One-sided, of being no better than the twin: neither less harm nor a later break."""
    adjusted_p_value: float | None = None
    """The same among all attacks that break the twin; None where no claim was tested."""
    utility_difference: Score | None = None
    """Before any attack, subject minus twin, paired by prompt."""
    over_refusal_difference: Score | None = None
    learned_difference: Score | None = None
    """How well the lesson was learned at the budget's end, subject minus twin."""
    controls: tuple[ControlComparison, ...] = ()
    detectable: float | None = None
    """The smallest true harm difference that this many seeds and prompts would have shown (80 % power)."""
    believable: bool
    reasons: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"<{self.verdict}: {printable(self.sentence)}>"

    def _repr_html_(self) -> str:
        """For notebooks."""
        return notebook.paragraph(self.verdict.replace("-", " "), self.sentence, self.reasons)


class Conclusion(Record):
    """What may be said of one subject over all attacks: an attacker picks the attack, so the worst of them counts."""

    subject: str
    versus: str
    word: Literal["dead", "no-better", "not-believable", "delayed", "not-broken"]
    sentence: str
    reasons: tuple[str, ...] = ()
    attacks: tuple[str, ...] = ()
    """The believable ones, each of which breaks the twin: the word is about these."""
    weakest: str | None = None
    """Of the attacks that break the subject, the one that breaks it soonest beside the twin."""
    cost_ratio: Ratio | None = None
    """Of that attack."""

    def __repr__(self) -> str:
        return f"<{self.word}: {printable(self.sentence)}>"

    def _repr_html_(self) -> str:
        """For notebooks."""
        return notebook.paragraph(self.word.replace("-", " "), self.sentence, self.reasons)


StandingWord = Literal[
    "not-broken", "delayed", "no-better", "not-believable", "dead", "broken", "not-broken-uncontrolled", "not-tested"
]


class Standing(Record):
    """What one adversary does to one subject, by what that adversary is the first to afford."""

    subject: str
    adversary: str
    """As `student`: see `adversaries.py`."""
    versus: str | None
    """The undefended twin."""
    word: StandingWord
    sentence: str
    """Who, with what, how long it took, at what price, against the twin."""
    attacks: tuple[str, ...]
    """That this adversary tried."""
    broken_by: tuple[str, ...] = ()
    """Those that broke it within the adversary's means, in one seed at least."""
    worst: str | None = None
    """The cheapest of these."""
    cost: Cost | None = None
    """What it had spent when the median of the seeds that broke did."""
    dollars: float | None = None
    """That much training on a rented GPU; None where its operations were not counted."""
    cost_to_break: CostToBreak | None = None
    versus_cost_to_break: CostToBreak | None = None
    cost_ratio: Ratio | None = None
    reasons: tuple[str, ...] = ()
    harm: Score | None = None
    """The most that any of these attacks left at its end, of those that this adversary can walk to their end."""


class Check(Record):
    """One doubt about the result, and what became of it."""

    name: str
    passed: bool | None
    """None: could not be checked."""
    says: str
    """In plain words."""
    subject: str | None = None
    """Whom it is about; None: the whole run."""
    attack: str | None = None
    """Under which attack; None: under all."""
    grave: bool = False
    """Unless it passed, nothing that it is about may be claimed to hold better than its twin."""
    suite: bool = False
    """About which attacks were chosen and whether all were run: it bears on the conclusion, not on one attack's verdict."""


class Point(Record):
    """One position along an attack's path, over the seeds that got there."""

    position: float
    seconds: float
    seeds: int
    held: float
    """Share of seeds not broken: on a clock so far (Kaplan-Meier; 0 where none answers), of severities at this very point."""
    harm: Score | None = None
    refusal: Score | None = None
    coherence: Score | None = None
    over_refusal: Score | None = None
    utility: Score | None = None
    learned: Score | None = None
    fresh: Score | None = None
    second: Score | None = None
    per_seed: tuple[float | None, ...] = ()
    """Harm of each seed, in the attack's order of seeds."""
    plane: tuple[float, float] | None = None
    """Where on a plane of two directions this is; `position` is then the distance."""
    status: Status = "answers"
    """How most seeds' models were there; of equals the worse."""
    broken: int = 0
    """Seeds that are broken at this very point."""


class Landscape(Record):
    """What a walk along random directions, out to `reach`, met: means over seeds, distances in the axis' unit."""

    reach: float
    radius: float | None
    """Where harm, whatever became of utility, first reached the threshold: median seed; None if that never happened."""
    broken: float
    """Share of the disc within reach (of the line, along one direction) that is broken."""
    incoherent: float
    """Share of it where most answers are gibberish or the model is dead."""


class Curve(Record):
    """One subject under one attack."""

    subject: str
    attack: str
    axis: str
    points: tuple[Point, ...]
    landscape: Landscape | None = None


class Kind(Record):
    """What hand labels show of one kind of answers, and of the judge there."""

    kind: str
    answers: int
    """Of this kind in the run."""
    judged: float
    """Share of them that the judge calls harmful."""
    labeled: int
    unsure: int
    """Of the labeled ones."""
    harm: Score | None = None
    """Share of them that is harmful; None where too few are labeled."""
    sensitivity: Score | None = None
    specificity: Score | None = None
    lacks: str = ""
    """What more labels are needed; empty if they are enough."""


class Labelers(Record):
    """Two people who labeled the same answers."""

    who: tuple[str, str]
    answers: int
    raw: Score
    """Share on which they said the same; what one was unsure of is left out."""
    kappa: Score | None


class HandLabels(Record):
    """What people said of a run's answers."""

    who: dict[str, int]
    """How many answers each labeled."""
    drawn: int
    strays: int
    """Labels of answers that the run does not hold any more."""
    kinds: tuple[Kind, ...]
    agreement: tuple[Labelers, ...] = ()


class Dossier(Record):
    """`verdict.json`: everything the report says, as data."""

    manifest: Manifest
    subjects: tuple[SubjectFacts, ...]
    cells: tuple[Cell, ...]
    curves: tuple[Curve, ...]
    verdicts: tuple[Verdict, ...]
    checks: tuple[Check, ...]
    conclusions: tuple[Conclusion, ...] = ()
    """One for each subject that has an undefended twin."""
    standings: tuple[Standing, ...] = ()
    """One for each subject and adversary, from the least able adversary on."""
    labels: HandLabels | None = None
    """None where nobody labeled answers of this run."""

    def written(self) -> Iterator[str]:
        """As JSON, its cells last and one a line: there may be a hundred thousand, which are never all in memory as text."""
        rest = self.model_dump(mode="json", exclude={"cells"})
        text = json.dumps(rest, indent=1, ensure_ascii=False, allow_nan=False)
        yield f'{text.removesuffix("}").rstrip()},\n "cells": ['
        for number, cell in enumerate(self.cells):
            yield f"{',' * bool(number)}\n  {cell.model_dump_json()}"
        yield "\n ]\n}\n"
