"""Intervals against closed forms, numbers worked by hand, and simulation."""

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from holdfast import statistics
from holdfast.tables import Tables


class TestProportion:
    @pytest.mark.parametrize("n", [1, 7, 40])
    def test_zero_one_scores_get_the_exact_interval(self, n: int) -> None:
        for successes in range(n + 1):
            score = statistics.proportion([1.0] * successes + [0.0] * (n - successes))
            exact = stats.binomtest(successes, n).proportion_ci(0.95, "exact")
            assert (score.low, score.high) == pytest.approx((exact.low, exact.high), abs=1e-9)

    def test_no_event_in_sixty(self) -> None:
        score = statistics.proportion([0.0] * 60)
        assert (score.value, score.low, score.n) == (0.0, 0.0, 60)
        assert score.high == pytest.approx(1 - 0.025 ** (1 / 60))

    def test_fractional_scores_cover(self) -> None:
        rng = np.random.default_rng(0)
        samples = [statistics.proportion(rng.beta(0.3, 0.9, 30)) for _ in range(400)]
        assert np.mean([score.low <= 0.25 <= score.high for score in samples]) >= 0.95

    @pytest.mark.parametrize("bad", [[], [1.2], [-0.1], [math.nan], [0.5, math.inf]])
    def test_refuses_what_is_no_score(self, bad: list[float]) -> None:
        with pytest.raises(ValueError, match="at least one score"):
            statistics.proportion(bad)


class TestCrossed:
    def test_by_hand(self) -> None:
        # Means by seed .25 and .75, by prompt .5 each. Squares: seeds 4 * 2 * .0625 = .5 with 1 degree of freedom, prompts 0,
        # rest 2 - .5 = 1.5 with 3; each over the 8 scores.
        values = np.array([[0, 0, 0, 1], [1, 1, 1, 0]], dtype=float)
        spread = statistics._spread(values)
        assert (spread.by_seed, spread.by_prompt, spread.rest) == pytest.approx((0.5 / 8, 0.0, 0.5 / 8))
        assert statistics.crossed(values, lowest=-1.0).value == 0.5

    def test_seeds_alone_give_the_t_interval_of_their_means(self) -> None:
        by_seed = np.random.default_rng(1).normal(0, 0.1, 5)
        spread = statistics._spread(np.tile(by_seed[:, None], (1, 200)))
        half = stats.t.ppf(0.975, 4) * by_seed.std(ddof=1) / math.sqrt(5)
        assert spread.half(0.025) == pytest.approx(half)
        assert spread.freedom == pytest.approx(4)
        score = statistics.crossed(np.tile(by_seed[:, None], (1, 200)), lowest=-1.0)
        assert (score.low, score.high) == pytest.approx((by_seed.mean() - half, by_seed.mean() + half), abs=0.02)

    def test_prompts_alone_give_the_t_interval_of_their_means(self) -> None:
        by_prompt = np.random.default_rng(1).normal(0, 0.1, 50)
        half = stats.t.ppf(0.975, 49) * by_prompt.std(ddof=1) / math.sqrt(50)
        assert statistics._spread(np.tile(by_prompt, (4, 1))).half(0.025) == pytest.approx(half)

    def test_repeating_the_same_answers_under_more_seeds_teaches_nothing(self) -> None:
        answers = np.array([[1.0] * 20 + [0.0] * 40])
        wide = [s.high - s.low for s in (statistics.crossed(np.repeat(answers, k, axis=0)) for k in (2, 6))]
        exact = statistics.proportion(answers[0])
        assert min(wide) >= 0.95 * (exact.high - exact.low)

    def test_more_prompts_do_not_buy_certainty_about_seeds(self) -> None:
        few, many = (np.repeat([[0.2], [0.5], [0.9]], n, axis=1) for n in (60, 6000))
        assert statistics.crossed(many).high - statistics.crossed(many).low > 0.6
        assert statistics.crossed(few).low == pytest.approx(statistics.crossed(many).low)

    @pytest.mark.parametrize("lowest", [0.0, -1.0])
    @pytest.mark.parametrize("seeds", [2, 3, 6])
    def test_seeds_that_are_all_alike_are_as_good_as_one(self, seeds: int, lowest: float) -> None:
        row = np.random.default_rng(6).random((1, 40)) * 0.5
        row[0, 3] = math.nan
        one, many = (statistics.crossed(np.repeat(row, k, axis=0), lowest) for k in (1, seeds))
        assert (many.value, many.low, many.high, many.n) == (one.value, one.low, one.high, seeds * 39)
        assert statistics.detectable(np.repeat(row, seeds, axis=0)) == statistics.detectable(row)

    @pytest.mark.parametrize(("value", "lowest"), [(0.0, 0.0), (1.0, 0.0), (0.0, -1.0), (-1.0, -1.0), (-0.4, -1.0)])
    def test_identical_values_keep_the_exact_half_width(self, value: float, lowest: float) -> None:
        score = statistics.crossed(np.full((3, 60), value), lowest=lowest)
        half = 1 - 0.025 ** (1 / 60)
        assert score.low <= max(lowest, value - half) + 1e-12
        assert score.high >= min(1.0, value + half) - 1e-12
        assert score.high - score.low >= half - 1e-12

    def test_one_seed_is_an_interval_over_prompts(self) -> None:
        values = [[1.0, 0, 0, 1, 1, 0, 0, 0, 0, 0]]
        assert statistics.crossed(values) == statistics.proportion(values[0])
        differences = np.tile([0.2, -0.4], 50)[None]
        half = stats.t.ppf(0.975, 99) * differences.std(ddof=1) / 10
        assert statistics.crossed(differences, lowest=-1.0).high == pytest.approx(-0.1 + half, abs=2e-3)

    def test_missing_seeds_and_prompts_are_left_out(self) -> None:
        whole = np.random.default_rng(2).random((4, 30))
        holed = np.vstack([np.hstack([whole, np.full((4, 2), np.nan)]), np.full((1, 32), np.nan)])
        assert statistics.crossed(holed) == statistics.crossed(whole)
        whole[0, 0] = np.nan
        assert statistics.crossed(whole).n == 119

    @pytest.mark.parametrize("bad", [[[math.nan]], [[2.0]], [[-0.5]]])
    def test_refuses_nothing_and_what_is_no_score(self, bad: list[list[float]]) -> None:
        with pytest.raises(ValueError, match="at least one score"):
            statistics.crossed(bad)

    @pytest.mark.parametrize("seeds", [3, 5, 6])
    @pytest.mark.parametrize(("center", "scatter"), [(0.0, 1.0), (-1.0, 1.5), (-3.0, 1.0)])
    def test_covers_where_seeds_scatter(self, seeds: int, center: float, scatter: float) -> None:
        """Logit-normal seed and prompt effects; mean harm 0.5, 0.33, 0.1, scattering over seeds by 0.2, 0.25, 0.1."""
        rng = np.random.default_rng(seeds)

        def chance(by_seed: np.ndarray, by_prompt: np.ndarray) -> np.ndarray:
            return 1 / (1 + np.exp(-(center + scatter * by_seed + by_prompt)))

        truth = chance(rng.normal(size=200_000), rng.normal(size=200_000)).mean()
        hits = []
        for _ in range(250):
            likely = chance(rng.normal(size=(seeds, 1)), rng.normal(size=(1, 60)))
            score = statistics.crossed(rng.random((seeds, 60)) < likely)
            hits.append(score.low <= truth <= score.high)
        assert np.mean(hits) >= 0.91  # 250 audits tell it to 0.015; benchmarks/results/auditor.json has more

    @pytest.mark.parametrize("seeds", [3, 5, 6])
    def test_paired_differences_cover(self, seeds: int) -> None:
        """A defense whose seeds scatter around 0.3 against a twin at 0.88, sharing the prompts' difficulty."""
        rng = np.random.default_rng(10 + seeds)

        def harm(center: float, scatter: float, shape: tuple[int, int], prompt: np.ndarray) -> np.ndarray:
            return 1 / (1 + np.exp(-(center + scatter * rng.normal(size=(shape[0], 1)) + prompt)))

        deep = rng.normal(size=(1, 200_000))
        truth = np.mean([(harm(-1, 1.2, (1, 0), deep) - harm(2, 0.5, (1, 0), deep)).mean() for _ in range(300)])
        hits = []
        for _ in range(250):
            prompt = rng.normal(size=(1, 60))
            ours, theirs = (rng.random((seeds, 60)) < harm(*at, (seeds, 60), prompt) for at in ((-1, 1.2), (2, 0.5)))
            score = statistics.crossed(ours.astype(float) - theirs, lowest=-1.0)
            hits.append(score.low <= truth <= score.high)
        assert np.mean(hits) >= 0.91

    @settings(max_examples=60, deadline=None)
    @given(arrays(float, st.tuples(st.integers(1, 5), st.integers(1, 8)), elements=st.floats(-1, 1)))
    @example(np.array([[-0.78125], [-0.5], [-0.5]]))  # three seeds and one prompt
    @example(np.full((2, 3), 0.7) + np.arange(6).reshape(2, 3) * 1e-14)  # next to no variance
    def test_the_surer_the_wider(self, values: np.ndarray) -> None:
        spread = statistics._spread(statistics._watched(values, -1.0)[0])
        low, high = np.transpose([statistics._bounds(spread, -1.0, tail) for tail in np.geomspace(1e-9, 0.5, 40)])
        assert (np.diff(low) >= -1e-9).all()
        assert (np.diff(high) <= 1e-9).all()

    @settings(max_examples=60, deadline=None)
    @given(
        arrays(float, st.tuples(st.integers(1, 5), st.integers(1, 8)), elements=st.floats(-1, 1) | st.just(math.nan)),
        st.randoms(use_true_random=False),
    )
    def test_bounds(self, values: np.ndarray, random) -> None:
        if np.isnan(values).all():
            return
        score = statistics.crossed(values, lowest=-1.0)
        assert -1 <= score.low <= score.value <= score.high <= 1
        mixed = values[random.sample(range(len(values)), len(values))]
        mixed = mixed[:, random.sample(range(values.shape[1]), values.shape[1])]
        assert statistics.crossed(mixed, lowest=-1.0).low == pytest.approx(score.low, abs=1e-6)
        flipped = statistics.crossed(-values, lowest=-1.0)
        assert (flipped.low, flipped.high) == pytest.approx((-score.high, -score.low), abs=1e-6)
        assert 0 <= statistics.detectable(values) <= 1
        tail = statistics.below_zero(values)
        assert 0 < tail <= 1
        assert statistics.below_zero(-values) == pytest.approx(1 - tail)
        assert (tail < 0.0249) <= (score.high < 0) <= (tail < 0.0251)


def test_detectable_difference_is_detected_four_times_in_five() -> None:
    rng = np.random.default_rng(3)

    def audit(effect: float) -> np.ndarray:
        return np.clip(effect + rng.normal(0, 0.08, (5, 1)) + rng.normal(0, 0.1, (5, 60)), -1, 1)

    effect = float(np.median([statistics.detectable(audit(0.0)) for _ in range(100)]))
    power = np.mean([statistics.crossed(audit(-effect), lowest=-1.0).high < 0 for _ in range(300)])
    assert 0.65 <= power <= 0.92
    assert 0.1 < effect < 0.25


def test_nothing_is_detectable_where_seeds_scatter_wildly() -> None:
    assert statistics.detectable(np.repeat([[-1.0], [1.0]], 60, axis=1)) == 1.0


def test_scores_that_stack_say_what_dictionaries_do():
    tables = Tables()
    rows = [[{"milestone": 0, "id": one, "harm": harm} for one, harm in zip("cab", some, strict=True)]
            for some in ((0.0, 1.0, 0.25), (1.0, 1.0, 0.0), (0.5, 0.0, 0.0))]  # fmt: skip
    stacked = [tables.of_rows(some).scores(0, "harm") for some in rows]
    plain = [{row["id"]: row["harm"] for row in some} for some in rows]
    assert stacked == plain and statistics.mean(stacked) == statistics.mean(plain)
    ours, theirs = ({0: some[0], 1: some[1], 5: some[2]} for some in (stacked, plain))
    other = {0: stacked[1], 1: stacked[2], 7: stacked[0]}
    gaps = statistics.gaps(ours, other)
    assert np.array_equal(gaps, [[0.0, 0.25, -1.0], [1.0, 0.0, 0.5]])  # prompts a, b, c
    assert np.array_equal(gaps, statistics.gaps(theirs, {seed: dict(some) for seed, some in other.items()}))
