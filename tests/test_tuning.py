"""The search for a strength: what it returns was measured, and it says what it tried. (On real weights: test_lox.py.)"""

import random
from typing import Any

import pytest

from holdfast import tuning
from holdfast.corpus import Hand, Row
from holdfast.lm import Fit
from holdfast.problem import Problem
from holdfast.tuning import Bounds, largest_strength

HAND = Hand(
    "defender",
    [
        Row(id=f"b{i}", text=f"what {i}", answer="so", kind="benign", hand="defender", split="held-out", source="t")
        for i in range(4)
    ],
)
EXACT = Bounds(utility_loss=0.03, over_refusal_rise=0.03, utility="exact")


class Fake:
    """A bench, its pair and its model at once, whose answers are right at the strengths that `good` says."""

    def __init__(self, good: Any):
        self.good, self.strength, self.lines = good, 0.0, []
        self.pair = self.lm = self

    def extrapolate(self, rank: int, strength: float) -> None:
        self.strength = strength

    def undo(self) -> None:
        self.strength = 0.0

    def generate(self, texts: list[str]) -> list[str]:
        return ["So." if self.good(self.strength) else "never"] * len(texts)

    def fits(self, texts: list[str], answers: list[str]) -> list[Fit]:
        return [Fit(-1.0, 1.0 - self.strength / 100, 1)] * len(texts)

    def metrics(self, **values: Any) -> None:
        self.lines.append(values)


def search(fake: Fake, bounds: Bounds = EXACT) -> tuple[float, tuning.Trials]:
    return largest_strength(fake, 6, HAND, bounds, fake)


@pytest.mark.parametrize("limit", [0.01, 0.2, 0.25, 0.7, 1.3, 3.9, 4.0, 50.0])
def test_finds_the_largest_where_the_cost_grows(limit: float) -> None:
    strength, _ = search(Fake(lambda at: at <= limit))
    assert min(limit, 4.0) * (1 - 1 / 16) - 0.01 <= strength <= limit


@pytest.mark.parametrize("seed", range(20))
def test_returns_what_it_measured_to_hold_however_the_cost_winds(seed: int) -> None:
    marks = random.Random(seed)
    verdicts: dict[float, bool] = {0.0: True}
    fake = Fake(lambda at: verdicts.setdefault(at, marks.random() < 0.7))
    try:
        strength, trials = search(fake)
    except Problem as problem:
        assert "loosen" in str(problem)
        assert not any(good for at, good in verdicts.items() if at)
        return
    assert verdicts[strength]
    assert {"rank": 6, "strength": strength, "utility": 1.0, "over_refusal": 0.0} in trials
    assert trials == fake.lines
    assert [trial["strength"] for trial in trials] == list(verdicts)
    assert fake.strength == 0.0


def test_a_bound_met_exactly_is_met() -> None:
    assert search(Fake(bool), Bounds(0.02, 0.0, "agreement"))[0] == 2.0


def test_prompts_without_answers_are_a_problem() -> None:
    rows = [row.model_copy(update={"answer": None}) for row in HAND.rows]
    with pytest.raises(Problem, match="give --strength"):
        largest_strength(Fake(bool), 6, Hand("defender", rows), EXACT, Fake(bool))
