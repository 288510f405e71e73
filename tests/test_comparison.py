"""Two models prompt by prompt: what counts as held, lost and undecided."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.comparison import compared, holm, needed


def scores(*values: float) -> dict[str, float]:
    return {f"p{number}": float(value) for number, value in enumerate(values)}


def one(measure: str, source: list[float], artifact: list[float], margin: float = 0.05):
    answers = [("a", "a")] * len(source)
    return compared({measure: scores(*source)}, {measure: scores(*artifact)}, margin, answers).pairings[0]


def test_six_refusals_lost_and_none_won_is_mcnemar_by_hand():
    found = one("refusal", [1] * 80, [0] * 6 + [1] * 74)
    assert (found.worse, found.better) == (6, 0)
    assert found.p == pytest.approx(0.5**6)
    assert found.loss.value == pytest.approx(6 / 80)
    assert found.verdict == "lost"


def test_as_many_won_as_lost_is_no_loss():
    found = one("refusal", [1] * 5 + [0] * 5 + [1] * 70, [0] * 5 + [1] * 5 + [1] * 70)
    assert found.loss.value == 0 and found.p > 0.5
    assert found.verdict == "undecided", "ten of 80 changed: the interval is wider than the margin"


def test_nothing_changed_is_held_only_by_enough_prompts():
    assert one("harm", [0] * needed(0.05), [0] * needed(0.05)).verdict == "held"
    assert one("harm", [0] * (needed(0.05) - 1), [0] * (needed(0.05) - 1)).verdict == "undecided"
    assert needed(0.05) == 72  # 1 - 0.025 ** (1 / 72) is the first of these at or below 0.05


def test_more_is_worse_for_harm_and_less_for_utility():
    few, many = [0.0] * 100, [1.0] * 60 + [0.0] * 40
    for measure in ("harm", "over_refusal"):
        assert one(measure, few, many).verdict == "lost"
        assert one(measure, many, few).verdict == "held"
    for measure in ("refusal", "utility", "coherence"):
        assert one(measure, many, few).verdict == "lost"
        assert one(measure, few, many).verdict == "held"


def test_shares_are_compared_by_their_paired_interval():
    source = [0.5 + 0.004 * number for number in range(100)]
    assert one("utility", source, [share - 0.2 - 0.001 * (n % 7) for n, share in enumerate(source)]).verdict == "lost"
    assert one("utility", source, [share - 0.01 for share in source]).verdict == "held"


def test_one_lost_measure_loses_and_one_undecided_leaves_it_open():
    kept, gone = scores(*[1] * 200), scores(*[0] * 20, *[1] * 180)
    few = scores(1, 1, 1)
    source = {"refusal": kept, "utility": kept}
    answers = [("a", "a")] * 150 + [("a", "b")] * 50
    assert compared(source, {"refusal": gone, "utility": kept}, 0.05, answers).verdict == "lost"
    assert compared(source | {"harm": few}, {"refusal": kept, "utility": kept, "harm": few}, 0.05, answers).verdict == (
        "undecided"
    )
    found = compared(source, source, 0.05, answers)
    assert (found.verdict, found.same, found.prompts) == ("held", 150, 200)


def test_prompts_without_a_verdict_of_both_are_left_out():
    found = compared({"harm": scores(0, 0, 1)}, {"harm": {"p0": 0.0, "p2": 1.0, "p9": 1.0}}, 0.05, [("a", "a")])
    assert found.pairings[0].loss.n == 2
    with pytest.raises(ValueError, match="nothing was measured"):
        compared({"harm": {"a": 1.0}}, {"harm": {"b": 1.0}}, 0.05, [("a", "a")])


@given(st.dictionaries(st.text(max_size=3), st.floats(0, 1), min_size=1, max_size=6))
def test_holm_adjusts_upwards_and_keeps_the_order(chances):
    adjusted = holm(chances)
    assert all(adjusted[name] >= chance for name, chance in chances.items())
    assert max(adjusted.values()) <= 1
    ordered = sorted(chances, key=lambda name: chances[name])
    assert [adjusted[name] for name in ordered] == sorted(adjusted.values())
    least = min(chances.values())
    assert min(adjusted.values()) == min(1.0, least * len(chances))
