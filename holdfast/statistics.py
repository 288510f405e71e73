"""Numbers with their doubt: means and differences over prompts and seeds, and what could have been detected.

Every interval is a 95 % one and never NaN. Knows no torch and no files.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import fsum
from statistics import fmean

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special

from holdfast import tables
from holdfast.record import Score

POWER = 0.8
SMALLEST = 1e-9
"""No p-value is said to be smaller."""
NOTHING = 1e-6
"""Half widths below it are none: nobody asks after them, and a beta of that many scores is beyond floating point."""
Scores = Mapping[str, float]
"""Score by prompt id."""


def proportion(values: Sequence[float]) -> Score:
    """The mean of per-prompt scores in [0, 1], with its interval over prompts.

    Where all scores are 0 or 1 this is the exact binomial interval. Scores in between get the same formula at a
    fractional count: of all variables in [0, 1] with a given mean the 0/1 one scatters most, so it errs towards wide.
    Raises ValueError if there is no score, or one outside [0, 1].
    """
    scores = np.asarray(values, dtype=float)
    if scores.size == 0 or not ((scores >= 0) & (scores <= 1)).all():
        raise ValueError("proportion: needs at least one score, each in [0, 1]")
    mean = float(np.clip(scores.mean(), 0, 1))
    low, high = exact(mean, scores.size)
    return Score(value=mean, low=min(low, mean), high=max(high, mean), n=scores.size)


def exact(mean: float, n: float, tail: float = 0.025) -> tuple[float, float]:
    """The exact binomial bounds (Clopper and Pearson 1934) for a mean of `n` scores, as quantiles of a beta; 95 % ones
    unless another `tail` a side is given."""
    count = mean * n
    low = 0.0 if count <= 0 else float(special.betaincinv(count, n - count + 1, tail))
    high = 1.0 if count >= n else float(special.betaincinv(count + 1, n - count, 1 - tail))
    return low, high


def crossed(values: ArrayLike, lowest: float = 0.0) -> Score:
    """The mean of scores in [`lowest`, 1] over random seeds (rows) crossed with random prompts (columns); NaN is missing.

    Where seeds and prompts tell everything apart alike (no variance, or next to none), the half width is that of the exact
    binomial for zero events among the prompts. With one seed, or with seeds that are all alike, the interval is over
    prompts alone: whoever reports it must say so. Raises ValueError if there is no value, or one out of bounds.
    """
    scores, n = _watched(values, lowest)
    if len(scores) == 1 and lowest == 0:
        return proportion(scores[~np.isnan(scores)]).model_copy(update={"n": n})
    spread = _spread(scores)
    low, high = _bounds(spread, lowest, 0.025)
    return Score(value=float(np.clip(spread.mean, lowest, 1)), low=low, high=high, n=n)


def below_zero(differences: ArrayLike) -> float:
    """One-sided p-value of a true mean difference of 0 or more: the level at which `crossed`'s interval just ends at 0."""
    scores = _watched(differences, -1.0)[0]
    spread = _spread(scores)
    if spread.mean > 0:
        return 1 - below_zero(-scores)

    def above(tail: float) -> float:
        return _bounds(spread, -1.0, np.exp(tail))[1]

    least, most = np.log(SMALLEST), np.log(0.5)
    if above(least) < 0:
        return SMALLEST
    return 0.5 if above(most) >= 0 else float(np.exp(optimize.brentq(above, least, most)))


@dataclass(frozen=True)
class _Spread:
    """A mean and what its variance is made of: mean squares by seed, by prompt and of the rest, each over all scores."""

    mean: float
    by_seed: float
    by_prompt: float
    rest: float
    seeds: int
    prompts: int

    @cached_property
    def variance(self) -> float:
        return max(self.by_seed + self.by_prompt - self.rest, 0.0)

    @cached_property
    def freedom(self) -> float:
        """Satterthwaite's (1946) degrees of freedom of the variance, never fewer than the fewer of seeds and prompts have."""
        parts = (
            (self.by_seed, self.seeds - 1),
            (self.by_prompt, self.prompts - 1),
            (self.rest, (self.seeds - 1) * (self.prompts - 1)),
        )
        doubt = sum(part**2 / freedom for part, freedom in parts if freedom)
        fewest = min((one - 1 for one in (self.seeds, self.prompts) if one > 1), default=1)
        return max(self.variance**2 / doubt, fewest) if doubt else fewest

    def half(self, tail: float) -> float:
        """Half the width of the interval that leaves out so much a side, by the t.

        Midway, in squares, between two approximations: Howe (1974), each part with the quantile of its own degrees of
        freedom, covers a little too much in between (up to 0.98 at 95 %), Satterthwaite's one quantile for the whole too
        little (down to 0.91).
        """
        howe = _quantile(self.seeds - 1, tail) ** 2 * self.by_seed
        howe += _quantile(self.prompts - 1, tail) ** 2 * max(self.by_prompt - self.rest, 0.0)
        return float(np.sqrt((howe + _quantile(self.freedom, tail) ** 2 * self.variance) / 2))

    @cached_property
    def short(self) -> float:
        """How much of the width that zero events among the prompts have this spread lacks, in [0, 1]. Told at 95 % for every
        level: both widths grow with the level, what one lacks of the other does not, and bounds must never come closer."""
        return max(1 - self.half(0.025) / exact(0.0, self.prompts)[1], 0.0)


def _bounds(spread: _Spread, lowest: float, tail: float) -> tuple[float, float]:
    """Bounds that leave out `tail` a side: exact ones for as many independent prompts as have a normal interval this wide,
    because scores pile up towards their limits."""
    mean = float(np.clip(spread.mean, lowest, 1))
    half, share, scale = spread.half(tail), (mean - lowest) / (1 - lowest), 1 - lowest
    low = high = share
    if half > NOTHING and 0 < share < 1:
        alone = share * (1 - share) * (float(special.ndtri(tail)) * scale / half) ** 2
        low, high = exact(share, max(1, alone), tail)
    short = spread.short * exact(0.0, spread.prompts, tail)[1]
    return max(lowest, min(lowest + scale * low, mean - short)), min(1.0, max(lowest + scale * high, mean + short))


def mean(scores: Sequence[Scores] | Mapping[int, Scores]) -> Score | None:
    """Of one dict of scores a seed, over seeds and prompts; None if nothing was scored."""
    if isinstance(scores, Mapping):
        scores = scores.scores if isinstance(scores, tables.Seeds) else list(scores.values())
    if _alike(scores):
        return crossed(_stacked(scores))
    if isinstance(scores, tables.Stack):  # of no prompts
        return None
    ids = sorted({name for one in scores for name in one})
    return crossed(_lines(scores, ids)) if ids else None


def gaps(ours: Mapping[int, Scores], theirs: Mapping[int, Scores]) -> np.ndarray | None:
    """Differences, seeds × prompts, of what both sides have (NaN elsewhere); None if they share nothing."""
    if isinstance(ours, tables.Seeds) and isinstance(theirs, tables.Seeds) and ours.seeds == theirs.seeds:
        sides = ours.scores, theirs.scores
        if _alike(sides[0]) and _alike(sides[0]) is _alike(sides[1]):
            return _stacked(sides[0]) - _stacked(sides[1])
    both = sorted(ours.keys() & theirs.keys())
    if _alike([side[seed] for seed in both for side in (ours, theirs)]):
        return _stacked([ours[seed] for seed in both]) - _stacked([theirs[seed] for seed in both])
    seeds = [seed for seed in sorted(ours) if ours[seed].keys() & theirs.get(seed, {}).keys()]
    ids = sorted({name for seed in seeds for name in ours[seed].keys() & theirs[seed].keys()})
    if not ids:
        return None
    return _lines([ours[seed] for seed in seeds], ids) - _lines([theirs[seed] for seed in seeds], ids)


def _alike(scores: Sequence[Scores]) -> tuple[str, ...]:
    """The prompts of all of these, where they are known to be the same; else none."""
    if isinstance(scores, tables.Stack):
        return scores.names
    first = scores[0].names if scores and isinstance(scores[0], tables.Scores) else ()
    return first if all(isinstance(one, tables.Scores) and one.names is first for one in scores) else ()


def _stacked(scores: Sequence[Scores]) -> np.ndarray:
    """Seeds × prompts, where all have the same prompts in the same order."""
    if isinstance(scores, tables.Stack):
        return scores.numbers.astype(float)
    return np.stack([one.numbers for one in scores if isinstance(one, tables.Scores)]).astype(float)


def _lines(scores: Sequence[Scores], ids: Sequence[str]) -> np.ndarray:
    """Seeds × prompts; NaN where a seed lacks a prompt."""
    places = {name: place for place, name in enumerate(ids)}
    lines, order, where = np.full((len(scores), len(ids)), np.nan), None, None
    for line, one in zip(lines, scores, strict=True):
        names = [*one]
        if names != order:  # seeds nearly always have the same prompts in the same order
            order, where = names, [places.get(name, -1) for name in names]
        values = np.fromiter(one.values(), dtype=float, count=len(names))
        if -1 in where:
            known = [place >= 0 for place in where]
            line[np.compress(known, where)] = values[known]
        else:
            line[where] = values
    return lines


def flat(scores: Sequence[Scores] | Mapping[int, Scores]) -> Scores:
    """Each prompt's mean over seeds."""
    several = scores.scores if isinstance(scores, tables.Seeds) else scores
    if isinstance(several, tables.Stack):
        means = (fsum(one) / len(several) for one in several.numbers.T.astype(float).tolist())
        return dict(zip(several.names, means, strict=True))
    every = [*several.values()] if isinstance(several, Mapping) else several
    ids = sorted({name for one in every for name in one})
    return {name: fmean(one[name] for one in every if name in one) for name in ids}


def difference(ours: Mapping[int, Scores], theirs: Mapping[int, Scores]) -> Score | None:
    """Mean of the `gaps`, paired by seed and by prompt; None if there are none."""
    lines = gaps(ours, theirs)
    return None if lines is None else crossed(lines, lowest=-1.0)


def detectable(differences: ArrayLike) -> float:
    """The smallest true difference that these seeds and prompts would have shown in 80 of 100 audits, at most 1.

    The interval's half width, plus what must lie beyond it for that power: the usual (t₀.₉₇₅ + t₀.₈) × standard error.
    1.0 means that no difference could be relied on to show.
    """
    spread = _spread(_watched(differences, -1.0)[0])
    half = max(spread.half(0.025), exact(0.0, spread.prompts)[1])
    return min(1.0, half + _quantile(spread.freedom, 1 - POWER) * float(np.sqrt(spread.variance)))


def _watched(values: ArrayLike, lowest: float) -> tuple[np.ndarray, int]:
    """The array without seeds and prompts that hold nothing, one row if all are alike; and how many scores it held."""
    scores = np.atleast_2d(np.asarray(values, dtype=float))
    seen = ~np.isnan(scores)
    count, known = int(seen.sum()), scores if seen.all() else scores[seen]
    if not count or known.min() < lowest or known.max() > 1:
        raise ValueError(f"crossed: needs at least one score, each in [{lowest:g}, 1]")
    whole = count == scores.size
    scores = scores[seen.any(axis=1)][:, seen.any(axis=0)]
    alike = (
        (scores == scores[0]).all()
        if whole
        else np.array_equal(scores, np.broadcast_to(scores[0], scores.shape), equal_nan=True)
    )
    return scores[:1] if alike else scores, count


def _spread(scores: np.ndarray) -> _Spread:
    """Two-way analysis of variance of a seeds × prompts array."""
    seen = ~np.isnan(scores)
    seeds, prompts, count = *scores.shape, int(seen.sum())
    average = np.mean if count == scores.size else np.nanmean
    mean = float(average(scores))
    by_seed, by_prompt = (average(scores, axis=axis, keepdims=True) - mean for axis in (1, 0))
    rest = np.where(seen, scores - mean - by_seed - by_prompt, 0.0)
    squares = ((by_seed**2 * seen).sum(), (by_prompt**2 * seen).sum(), (rest**2).sum())
    freedom = (seeds - 1, prompts - 1, max(count - seeds - prompts + 1, 0))
    parts = [float(square) / free / count if free else 0.0 for square, free in zip(squares, freedom, strict=True)]
    return _Spread(mean, *parts, seeds, prompts)


def _quantile(freedom: float, tail: float) -> float:
    return -float(special.stdtrit(freedom, tail)) if freedom > 0 else 0.0
