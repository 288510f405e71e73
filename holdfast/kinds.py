"""Kinds of answers, within which a judge may be taken to err alike, and the drawing of some of each for people to label.

A verdict's harm rests on the answers at the end of its attack's path (`Evidence.end`). Gibberish shifts judges, so these are told
apart from fluent ones, answer by answer; so are those of looks that the audit called incoherent, where harm may have been
overlooked, and those before any attack. Every kind is one subject's, and one attack's where as many labels are asked for as
that takes, else one attack family's: a model that was taught otherwise also errs, and is judged, otherwise.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from holdfast.evidence import Evidence, breaks_safety
from holdfast.labels import By
from holdfast.record import AttackFacts, Cell, SubjectFacts
from holdfast.reliability import HARMFUL

START, GIBBERISH, LOST = "before any attack", ": gibberish", ": incoherent model"
"""How the names of kinds end; no subject, attack or family is called so."""
ENOUGH = 8
"""Labels that a kind needs of each verdict, or all its answers where there are fewer."""


class Answer(NamedTuple):
    """Where an answer stands in a run's records."""

    cell: str
    milestone: int
    prompt: str


class Stratum(NamedTuple):
    """Answers among which chance alone draws."""

    kind: str
    called: bool
    """Whether the judge calls them harmful."""


def placed(evidence: Evidence, by: By) -> dict[Answer, Stratum]:
    """Every answer on which something rests, with its kind and its verdict."""
    found: dict[Answer, Stratum] = {}
    for attack in evidence.manifest.attacks:
        for subject in evidence.manifest.subjects if breaks_safety(attack) else ():
            found |= dict(_of(evidence, subject, attack, by))
    return found


def _of(evidence: Evidence, subject: SubjectFacts, attack: AttackFacts, by: By) -> Iterator[tuple[Answer, Stratum]]:
    ends = {cell.name: at for cell, at in evidence.ended(subject, attack)}
    for cell in evidence.of(subject, attack):
        for milestone, look in enumerate(cell.milestones):
            ended = milestone == ends.get(cell.name)
            if milestone == 0 or ended or look.status == "incoherent":
                yield from _answers(evidence, attack, cell, milestone, by)


def _answers(
    evidence: Evidence, attack: AttackFacts, cell: Cell, milestone: int, by: By
) -> Iterator[tuple[Answer, Stratum]]:
    fluent = evidence.scores(cell, milestone, "coherence")
    place = attack.name if by == "attack" else attack.family
    for prompt, harm in evidence.scores(cell, milestone, "harm").items():
        if milestone == 0:
            kind = START
        elif cell.milestones[milestone].status == "incoherent":
            kind = f"{place}{LOST}"
        else:
            kind = place if fluent.get(prompt, 1.0) >= HARMFUL else f"{place}{GIBBERISH}"
        yield Answer(cell.name, milestone, prompt), Stratum(f"{cell.subject}, {kind}", harm >= HARMFUL)


def alike(kind: str) -> bool:
    """Whether a kind's answers are alike whatever attack they come from, if people found them all harmless: they are gibberish,
    or were given before any attack."""
    return kind.endswith((START, GIBBERISH, LOST))


def needed(places: Mapping[Answer, Stratum]) -> int:
    """How many labels give every kind enough of each verdict."""
    return sum(min(ENOUGH, size) for size in counted(places).values())


def counted(places: Mapping[Answer, Stratum]) -> dict[Stratum, int]:
    """How many answers there are of each kind and verdict."""
    sizes: dict[Stratum, int] = defaultdict(int)
    for stratum in places.values():
        sizes[stratum] += 1
    return dict(sorted(sizes.items()))


def draw(places: Mapping[Answer, Stratum], count: int, seed: int) -> list[Answer]:
    """About `count` answers in an order of chance: enough of each stratum, and the rest as the roots of their sizes go.

    In a stratum every answer is as likely as any other, and draws are spread over prompts: systematic ones from a list by
    prompt. The same `seed` draws the same.
    """
    sizes, chance = counted(places), np.random.default_rng(seed)
    drawn: list[Answer] = []
    for stratum, number in _dealt(sizes, count).items():
        some = sorted((one for one, own in places.items() if own == stratum), key=lambda one: _shuffled(one, seed))
        steps: Iterable[float] = (chance.random() + np.arange(number)) * (len(some) / number) if number else []
        drawn += [some[int(step)] for step in steps]
    return [drawn[place] for place in chance.permutation(len(drawn))]


def _dealt(sizes: Mapping[Stratum, int], count: int) -> dict[Stratum, int]:
    """How many labels each stratum gets. The rare verdict is where errors weigh least, so what is more than enough goes to the
    large ones, and to those on which verdicts rest twice as much."""
    dealt: dict[Stratum, int] = {}
    for turn, (stratum, size) in enumerate(sorted(sizes.items(), key=lambda one: one[1])):
        fair = (count - sum(dealt.values())) // (len(sizes) - turn)
        dealt[stratum] = min(size, ENOUGH, max(fair, 0))
    weight = {one: np.sqrt(size) / (2 if one.kind.endswith((START, LOST)) else 1) for one, size in sizes.items()}
    left, open_ = count - sum(dealt.values()), [one for one in sizes if dealt[one] < sizes[one]]
    while left > 0 and open_:
        most = max(open_, key=lambda one: weight[one] / (dealt[one] + 1))
        dealt[most], left = dealt[most] + 1, left - 1
        open_ = [one for one in open_ if dealt[one] < sizes[one]]
    return dealt


def _shuffled(one: Answer, seed: int) -> tuple[str, str]:
    """Answers to one prompt stand together, all else as chance has it."""
    return _digest(f"{seed} {one.prompt}"), _digest(f"{seed} " + "\n".join(map(str, one)))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def mark(one: Answer, seed: int, answer_hash: str) -> str:
    """An id for a drawn answer that tells nothing of where it comes from, and that no other run's answer has."""
    return _digest(f"{seed} {one} {answer_hash}")[:12]
