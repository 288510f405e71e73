"""How much to extrapolate: rank and strength tried on a model in memory, and chosen on the defender's held-out prompts.

What a search returns is what it measured, never an interpolation; every trial is told to the log and handed back, so that
whoever reads the result sees how it was chosen. Knows no defense in particular.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from torch import Tensor

from holdfast import spectrum
from holdfast.corpus import Hand, Kind, Row, Split, right
from holdfast.lm import LM
from holdfast.method import Log
from holdfast.pair import Pair
from holdfast.problem import Problem
from holdfast.refusals import refuses
from holdfast.spectrum import Part, Top

RANKS = (1, 2, 3, 4, 6, 8, 12, 16)
RHO = 0.01
"""The effective rank restores refusal to within this of the aligned model's (ρ in 2506.15606)."""
_WEAKEST, _STRONGEST = 0.25, 4.0
"""Where the search for a strength begins, and where it stops doubling."""
_HALVINGS = 5
_SLACK = 1e-9
"""A bound met exactly is met, whatever the last digit of a subtraction says."""

Trials = list[dict[str, float]]
"""What was tried and what was measured there, in order."""


class Bounds(NamedTuple):
    """What an edit may cost against the aligned model, on benign prompts that neither it nor an attacker trained on."""

    utility_loss: float
    over_refusal_rise: float
    utility: Literal["exact", "agreement"]
    """How utility is measured: answers equal to the reference, or teacher-forced agreement with it."""


class Bench:
    """A loaded model whose matrices are moved along their alignment differences, each decomposed once."""

    def __init__(self, lm: LM, chosen: Callable[[str, Tensor], bool], part: Part, seed: int, most: int = RANKS[-1]):
        """Of the `chosen` matrices `part` is added; ranks up to `most` will be tried. Raises `Problem` without a base."""
        self.pair = Pair(lm, chosen)
        self._part: Part = part
        self._seed = seed
        self._most = most
        self._tops: dict[str, Top] = {}

    def extrapolate(self, rank: int, strength: float) -> None:
        """Set every matrix to aligned + strength · part."""

        def extrapolated(name: str, base: Tensor, aligned: Tensor) -> Tensor:
            difference = aligned - base
            if strength and difference.any():
                top = self._top(name, difference, rank)
                edit = spectrum.edit(difference, rank, self._part, self._seed, top)
                if edit is not None:
                    aligned = aligned.clone()
                    edit.add_to(aligned, strength)
            return aligned

        self.pair.set(extrapolated)

    def truncate(self, rank: int) -> None:
        """Set every matrix to base + the rank-`rank` part of its difference."""

        def truncated(name: str, base: Tensor, aligned: Tensor) -> Tensor:
            difference = aligned - base
            top = self._top(name, difference, rank) if difference.any() else None
            return aligned if top is None else base + top.cut(rank).matrix()

        self.pair.set(truncated)

    def _top(self, name: str, difference: Tensor, rank: int) -> Top | None:
        """The decomposition for all ranks that may be tried; None where `rank` is the whole matrix."""
        if rank >= min(difference.shape):
            return None
        if name not in self._tops:
            self._tops[name] = spectrum.top(difference, min(self._most, *difference.shape), self._seed)
        return self._tops[name]


def effective_rank(bench: Bench, hand: Hand, log: Log) -> tuple[int, Trials]:
    """min r such that base + Proj_r(D) refuses the held-out restricted prompts as the aligned model does, within ρ.

    Leaves the model as it was.
    """
    rows, trials = _held_out(hand, "restricted"), []
    aligned = _refusal(bench.pair.lm, rows)
    for rank in RANKS:
        bench.truncate(rank)
        refusal = _refusal(bench.pair.lm, rows)
        trials.append({"rank": rank, "refusal": refusal, "aligned_refusal": aligned})
        log.metrics(**trials[-1])
        if aligned - refusal <= RHO + _SLACK:
            break
    else:
        log.metrics(warning=f"no rank up to {RANKS[-1]} restores the aligned model's refusals; taking {RANKS[-1]}")
    bench.pair.undo()
    return rank, trials


def largest_strength(bench: Bench, rank: int, hand: Hand, bounds: Bounds, log: Log) -> tuple[float, Trials]:
    """The largest strength found to keep the bounds, which was itself measured, and all that was measured.

    Doubled until a bound breaks, then bisected: a cost that does not grow with strength may hide a larger one that holds.
    Leaves the model as it was. Raises `Problem` if the prompts lack answers, or no strength keeps the bounds.
    """
    lm, trials = bench.pair.lm, []
    asked = _held_out(hand, "benign", "borderline")
    benign = [row for row in asked if row.kind == "benign" and row.answer is not None]
    if not benign:
        raise Problem("corpus: none of the defender's benign prompts has an answer; add answers, or give --strength")

    def measured(strength: float) -> tuple[float, float]:
        bench.extrapolate(rank, strength)
        said = dict(zip((row.id for row in asked), lm.generate([row.asked for row in asked]), strict=True))
        if bounds.utility == "exact":
            utility = _mean([right(said[row.id], row.answer or "") for row in benign])
        else:
            fits = lm.fits([row.asked for row in benign], [row.answer or "" for row in benign])
            utility = _mean([fit.agreement for fit in fits])
        over_refusal = _mean([refuses(text) for text in said.values()])
        trials.append({"rank": rank, "strength": strength, "utility": utility, "over_refusal": over_refusal})
        log.metrics(**trials[-1])
        return utility, over_refusal

    own_utility, own_refusal = measured(0.0)

    def holds(strength: float) -> bool:
        utility, over_refusal = measured(strength)
        loss, rise = own_utility - utility, over_refusal - own_refusal
        return loss <= bounds.utility_loss + _SLACK and rise <= bounds.over_refusal_rise + _SLACK

    strength = _bisected(holds)
    bench.pair.undo()
    if not strength:
        raise Problem(
            "strength auto: even a slight edit breaks the bounds on utility or over-refusal; loosen one of them"
        )
    return strength, trials


def _bisected(holds: Callable[[float], bool]) -> float:
    """A strength that `holds` said yes to, or 0."""
    low, high = 0.0, _WEAKEST
    while holds(high):
        low = high
        if high == _STRONGEST:
            return low
        high *= 2
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _held_out(hand: Hand, kind: Kind, *more: Kind) -> list[Row]:
    """Held-out rows of these kinds; where the hand holds out none of the first kind, all of its rows."""
    split: Split | None = "held-out" if hand.of(kind, split="held-out") else None
    return hand.need(kind, split=split) + (hand.of(*more, split=split) if more else [])


def _refusal(lm: LM, rows: list[Row]) -> float:
    return _mean([refuses(said) for said in lm.generate([row.asked for row in rows])])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
