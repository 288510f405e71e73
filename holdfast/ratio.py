"""How many times later one model breaks than another: an accelerated-failure-time ratio with a small-sample interval.

The log of the cost to break is taken as normal around a center of each model's own, with one scatter for both; what is known
of a seed is the interval between two milestones, open upwards where the budget ended first. Each bound is where the profile
likelihood has fallen so far as the t test's has for uncensored observations, n·log(1 + t²/(n − 2)): exact without censoring
and close to it with (`benchmarks/results/auditor.json`). Evaluated on a grid of centers and scatters, for data of a few seeds
are often such that the most likely scatter is nothing at all. Reads records only; knows no torch and no files.
"""

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy import special

from holdfast.dossier import Ratio
from holdfast.record import Cell
from holdfast.survival import Bar, distinct, path, spans

STEP = 0.02
"""Of the grid of centers, in logs: the resolution of a ratio, 2 %."""
MARGIN = 4.0
"""How far the grid reaches beyond all milestones, in logs: a factor of 50."""
SCATTERS = np.exp(np.linspace(np.log(0.03), np.log(3.0), 40))
TAIL = 0.025
_SAME = 1e-3
"""Log-likelihoods no further apart are alike."""


class Lifetime(NamedTuple):
    """The log of one seed's cost to break lies between these."""

    low: float
    high: float


def ratio(ours: Sequence[Cell], theirs: Sequence[Cell], bar: Bar) -> Ratio | None:
    """How many times later `ours` broke than `theirs` along a clock; None where one of them tells nothing.

    Seeds of an attack without chance count as one. With fewer than three observations in all the interval is [0, ∞).
    """
    positions = path([*ours, *theirs], "steps")
    sides = [lifetimes(cells, positions, bar) for cells in (ours, theirs)]
    return of_lifetimes(*sides) if all(sides) else None


def lifetimes(cells: Sequence[Cell], positions: Sequence[float], bar: Bar) -> list[Lifetime]:
    """What each distinct seed tells of its cost; those that tell nothing are left out."""
    seeds = spans(distinct(cells), positions, bar)
    with np.errstate(divide="ignore"):
        logs = [*np.log(positions), np.inf]
    found = [Lifetime(float(logs[one.held]), float(logs[-1 if one.broke is None else one.broke])) for one in seeds]
    return [one for one in found if np.isfinite(one.low) or np.isfinite(one.high)]


def of_lifetimes(ours: Sequence[Lifetime], theirs: Sequence[Lifetime]) -> Ratio:
    """The ratio of two samples, neither empty."""
    return Profile(ours, theirs).ratio()


class Profile:
    """The likelihood of the log ratio of two samples, whatever their scatter and the second one's center."""

    def __init__(self, ours: Sequence[Lifetime], theirs: Sequence[Lifetime]):
        """Tables of log-likelihoods, scatters × centers, one a side."""
        self.seeds = len(ours), len(theirs)
        ends = [end for one in (*ours, *theirs) for end in one if np.isfinite(end)]
        self.centers = _centers(min(ends), max(ends))
        self.ours, self.theirs = (_likelihood(side, min(ends), max(ends)) for side in (ours, theirs))
        self._highest: dict[int, float] = {}
        self.peaks = self.ours.max(axis=1) + self.theirs.max(axis=1)
        self.best, self.top = int(self.peaks.argmax()), float(self.peaks.max())

    def ratio(self) -> Ratio:
        first, second = (self._center(table) for table in (self.ours, self.theirs))
        endless = first == np.inf or second == -np.inf
        early = first == -np.inf or second == np.inf
        low, high = None if early else self._reach(-1), None if endless else self._reach(1)
        return Ratio(
            value=None if endless else 0.0 if early else float(np.exp(first - second)),
            low=0.0 if low is None else float(np.exp(low)),
            high=None if high is None else float(np.exp(high)),
            seeds=self.seeds[0],
            versus_seeds=self.seeds[1],
            p_value=self.tail(0),
        )

    def tail(self, shift: int) -> float:
        """One-sided p-value of a log ratio of `shift` steps or less; 1 with fewer than three observations."""
        n = sum(self.seeds)
        if n < 3:
            return 1.0
        lag = max(self.top - self._at(shift), 0.0)
        t = np.sqrt((n - 2) * np.expm1(min(2 * lag / n, 500.0)))
        below = float(special.stdtr(n - 2, -t))
        rises = self._at(shift + 1) > self._at(shift - 1)
        return below if rises and lag > _SAME else 0.5 if lag <= _SAME else 1 - below

    def _at(self, shift: int) -> float:
        """The highest log-likelihood with our center `shift` steps above theirs."""
        if shift not in self._highest:
            length = len(self.centers) - abs(shift)
            ours, theirs = self.ours[:, max(shift, 0) :], self.theirs[:, max(-shift, 0) :]
            ours, theirs = ours[:, :length], theirs[:, :length]
            found = float((ours[self.best] + theirs[self.best]).max())
            above = self.peaks > found  # no other scatter's sum can be higher
            if above.any():
                found = max(found, float((ours[above] + theirs[above]).max()))
            self._highest[shift] = found
        return self._highest[shift]

    def _center(self, table: np.ndarray) -> float:
        """The most likely center, the middle of several; infinite where it lies beyond all milestones."""
        there = table[self.best]
        tied = self.centers[there >= there.max() - _SAME]
        if tied[0] <= self.centers[0] + STEP:
            return -np.inf
        return np.inf if tied[-1] >= self.centers[-1] - STEP else float(tied[[0, -1]].mean())

    def _reach(self, side: int) -> float | None:
        """The interval's bound on one side (-1, 1) as a log ratio; None where it is infinite."""

        def outside(shift: int) -> bool:
            tail = self.tail(shift)
            return (tail if side < 0 else 1 - tail) <= TAIL

        out = side * (len(self.centers) - round(MARGIN / STEP))
        if sum(self.seeds) < 3 or not outside(out):
            return None
        inside = -out
        while abs(out - inside) > 1:
            middle = (inside + out) // 2
            inside, out = (inside, middle) if outside(middle) else (middle, out)
        return out * STEP


@lru_cache(16)
def _centers(first: float, last: float) -> np.ndarray:
    """The grid around milestones between these."""
    return np.arange(first - MARGIN, last + MARGIN, STEP)


def _likelihood(sample: Sequence[Lifetime], first: float, last: float) -> np.ndarray:
    """The log-likelihood of a sample at each scatter and center of the grid."""
    return _summed(tuple(Counter(sample).items()), first, last)


@lru_cache(128)
def _summed(counts: tuple[tuple[Lifetime, int], ...], first: float, last: float) -> np.ndarray:
    """Of so many seeds of each kind, once for all that the same sample is compared with."""
    total = np.zeros((len(SCATTERS), len(_centers(first, last))))
    for one, count in counts:
        total += count * _of_one(one, first, last)
    return total


@lru_cache(256)
def _of_one(one: Lifetime, first: float, last: float) -> np.ndarray:
    """That of one seed, once for all that tell the same: a run's attacks share their milestones."""
    centers = _centers(first, last)
    low, high = ((end - centers) / SCATTERS[:, None] for end in one)
    low, high = np.where(low > 0, -high, low), np.where(low > 0, -low, high)  # the tail where digits are left
    upper, lower = special.log_ndtr(high), special.log_ndtr(low)
    return upper + np.log1p(-np.exp(np.minimum(lower - upper, -1e-15)))
