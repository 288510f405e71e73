"""What a run's evidence is worth is told by its content: names, and what a recipe is called, prove nothing."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import runs
import tiny
from holdfast import tier
from holdfast.evidence import Evidence
from holdfast.footing import Footing, audited, footing, released
from holdfast.problem import Problem
from holdfast.recipe import AttackRecipe
from holdfast.record import AttackFacts

WIDTH = 160


def attacks(which: str, width: int = WIDTH) -> list[AttackFacts]:
    """A tier's attacks as an audit of a model that wide makes them."""
    content = tier.read(which)
    made = []
    for table in tier.with_rates(content["attacks"], width):
        one = AttackRecipe(**table)
        settings = one.build().model_dump(mode="json")
        seeds = tuple(one.seeds or content["seeds"])
        facts = runs.attack(one.name, one.build().axis, one.negative_control, settings=settings, seeds=seeds)
        made.append(facts.model_copy(update={"method": one.method}))
    return made


def judged(made: Sequence[AttackFacts], lost: Sequence[tuple[str, int]] = (), **changes: Any) -> Footing:
    """Of a run of these attacks in which every cell but the `lost` ones was run to the end."""
    facts = runs.subject("mine").model_copy(update={"parameters": 900_000} | changes.pop("subject", {}))
    cells = [
        runs.cell("mine", one.name, seed, runs.clock(0.0, 0.1, axis=one.axis))
        for one in made
        for seed in one.seeds
        if (one.name, seed) not in lost
    ]
    told = runs.manifest([facts], made).model_copy(update=changes)
    return footing(Evidence(told, cells, {}), facts)


@pytest.mark.parametrize("which", ["smoke", "standard", "release"])
def test_a_whole_tier_is_reached(which: str) -> None:
    found = judged(attacks(which))
    assert found.tier == which, found.short[which]
    assert found.claims == (which != "smoke")


def test_a_higher_tier_does_for_a_lower_one() -> None:
    found = judged(attacks("release"))
    assert found.short["smoke"], "its attacks are others"
    assert not found.lacks("smoke") and not found.lacks("standard")


def test_names_do_not_matter() -> None:
    renamed = [one.model_copy(update={"name": f"a{number}"}) for number, one in enumerate(attacks("standard"))]
    assert judged(renamed).tier == "standard"
    pairs = zip(attacks("smoke"), attacks("standard"), strict=False)
    posing = [one.model_copy(update={"name": other.name}) for one, other in pairs]
    assert judged(posing).lacks("standard")


def changed(name: str, **settings: Any) -> list[AttackFacts]:
    return [
        one.model_copy(update={"settings": one.settings | settings}) if one.name == name else one
        for one in attacks("standard")
    ]


@pytest.mark.parametrize(
    ("made", "lost", "name", "why"),
    [
        ([one for one in attacks("standard") if one.name != "prefill"], (), "prefill", "prefill: not run"),
        (changed("harmful-low", steps=255), (), "harmful-low", "steps 255 where the tier has 256"),
        (
            changed("harmful-lora", learning_rate=4e-6),
            (),
            "harmful-lora",
            "learning_rate 4e-06 where the tier has 0.0004",
        ),
        (
            changed("harmful-high", learning_rate=1e-6),
            (),
            "harmful-high",
            "another learning rate than the tier's for a width",
        ),
        (attacks("standard"), [("benign", 8)], "benign", "8 of 9 seeds were run to the end"),
    ],
    ids=["dropped", "shorter", "milder", "rate by width", "seed"],
)
def test_one_attack_that_falls_short_is_named(
    made: list[AttackFacts], lost: Sequence[tuple[str, int]], name: str, why: str
) -> None:
    found = judged(made, lost)
    assert [*found.short["standard"]] == [name] and why in found.short["standard"][name]
    assert found.tier is None and not found.claims
    assert not found.lacks("standard", excused=[name]) and found.lacks("standard", excused=["prune"])


def test_a_larger_budget_is_as_good() -> None:
    assert judged(changed("harmful-low", steps=512)).tier == "standard"


def test_rates_that_fit_only_a_width_beyond_the_model_are_none_of_the_tier_s() -> None:
    gentle = attacks("standard", width=WIDTH * 100)
    assert "another learning rate" in judged(gentle).short["standard"]["harmful"]
    assert judged(gentle, subject={"parameters": None}).tier == "standard", "where the size is not known they may fit"


def test_the_checkpoint_s_own_width_counts_where_it_is_at_hand(checkpoint: Callable[[str], tiny.Made]) -> None:
    folder = checkpoint("llama").aligned
    own = tier.width(folder)
    assert judged(attacks("standard", own), subject={"folder": str(folder)}).tier == "standard"
    other = judged(attacks("standard", own * 8), subject={"folder": str(folder), "parameters": None})
    assert f"for a width of {own}" in other.short["standard"]["harmful"]


@pytest.mark.parametrize("bar", [{"threshold": 0.9}, {"utility_floor": 0.99}])
def test_a_bar_that_hides_breaks_reaches_no_tier(bar: dict[str, float]) -> None:
    found = judged(attacks("standard"), **bar)
    assert found.tier is None and "a break was counted from harm" in found.short["standard"]["bar"]
    assert judged(attacks("standard"), threshold=0.3).tier == "standard"


def test_what_a_corpus_without_pictures_cannot_ask_is_not_missing() -> None:
    made = [one for one in attacks("cuts") if one.method not in ("image_exit", "odd_picture", "drop_visual_tokens")]
    assert judged(made).lacks("cuts")
    gone = tuple(f"{one.name} needs pictures" for one in attacks("cuts") if one not in made)
    assert not judged(made, not_run=gone).lacks("cuts")
    assert (
        "it needs base weights"
        in judged(
            [one for one in attacks("smoke") if one.name != "subtract"], not_run=("subtract needs base weights",)
        ).short["smoke"]["subtract"]
    )


def test_an_organism_is_one_by_itself_by_its_twin_or_by_the_recipe() -> None:
    mine, twin = runs.subject("mine", twin="base"), runs.subject("base", organism="text")
    assert footing(Evidence(runs.manifest([twin, mine], []), [], {}), mine).organism == "text"
    alone = runs.subject("mine")
    told = runs.manifest([alone], [])
    assert footing(Evidence(told, [], {}, {"organism": {"method": "prose"}}), alone).organism == "prose"
    assert footing(Evidence(told, [], {}, {"organism": None}), alone).organism is None


def test_whom_a_run_is_about(tmp_path: Path) -> None:
    some = [runs.subject("base"), runs.subject("mine", twin="base"), runs.subject("expo", twin="base", control=True)]
    evidence = Evidence(runs.manifest(some, []), [], {})
    assert [one.name for one in released(evidence)] == ["mine"] and audited(evidence, None, tmp_path).name == "mine"
    assert audited(evidence, "expo", tmp_path).name == "expo"
    with pytest.raises(Problem, match="no subject 'mein'; did you mean 'mine'"):
        audited(evidence, "mein", tmp_path)
    several = [some[0], runs.subject("other")]
    with pytest.raises(Problem, match="several models; choose one of base, other with --subject"):
        audited(Evidence(runs.manifest(several, []), [], {}), None, tmp_path)
