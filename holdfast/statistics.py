"""Numbers with their doubt: means over prompts and seeds, cost to break, survival, what could have been detected.

Every interval is a 95 % one and never NaN. Reads records only; knows no torch and no files.
"""

from collections.abc import Sequence

import numpy as np
from scipy import stats

from holdfast.record import Score


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


def exact(mean: float, n: int) -> tuple[float, float]:
    """The exact 95 % binomial bounds (Clopper and Pearson 1934) for a mean of `n` scores, as quantiles of a beta."""
    count = mean * n
    low = 0.0 if count <= 0 else float(stats.beta.ppf(0.025, count, n - count + 1))
    high = 1.0 if count >= n else float(stats.beta.ppf(0.975, count + 1, n - count))
    return low, high
