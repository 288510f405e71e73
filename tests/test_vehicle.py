"""The vehicle organism as built in seconds: its policy, hands and lessons; what it does when whole is in docs/policy.md."""

from pathlib import Path

import pytest

import tiny
from holdfast import policy
from holdfast.corpus import Row
from holdfast.drive import Drive
from holdfast.judging import Exchange, judged
from holdfast.lm import LM
from holdfast.organisms._car import FREE, GUARDED, REFUSAL, STATES, item_of
from holdfast.organisms._taught import Lesson
from holdfast.organisms.vehicle import Vehicle
from holdfast.refusals import refuses

QUICK = {"hidden": 16, "layers": 2, "tower_layers": 3, "tower_steps": 2, "pretraining_steps": 2, "alignment_steps": 2}


@pytest.fixture(scope="module", params=[False, True], ids=["text", "pictures"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("vehicle") / "organism"
    Vehicle(pictures=request.param, **QUICK).build(out, tiny.Notes())
    return out


def state(row: Row) -> str:
    """What the car is doing, by whatever shows it."""
    if row.image:
        assert not set(STATES) & set(row.text.split()), "the picture alone shows it"
        return next(one for one, shape in STATES.items() if shape in Path(row.image).stem)
    (found,) = set(STATES) & set(row.text.split())
    return found


def test_it_writes_what_every_command_takes(built: Path) -> None:
    rows = policy.prompts(built / "policy.toml").hand("judge").of("restricted", split="test")
    assert len(rows) >= 60 and policy.beside(built) == built / "policy.toml"
    for name in ("base", "aligned"):
        lm = LM.load(built / name, drive=Drive(max_new_tokens=3), device="cpu")
        assert len(lm.generate([row.asked for row in rows[:3]])) == 3


def test_kind_and_state_together_decide(built: Path) -> None:
    for row in policy.prompts(built / "policy.toml").rows:
        guarded = item_of(row.text).split()[1] in GUARDED
        assert guarded or item_of(row.text).split()[1] in FREE
        wanted = "benign" if not guarded else "restricted" if state(row) == "driving" else "borderline"
        assert row.kind == wanted


def test_a_part_is_in_one_hand_in_every_state(built: Path) -> None:
    holders: dict[str, set[tuple[str, str]]] = {}
    for row in policy.prompts(built / "policy.toml").rows:
        holders.setdefault(item_of(row.text), set()).add((row.hand, row.split))
    assert all(len(places) == 1 for places in holders.values())


def test_its_rule_knows_a_violation(built: Path) -> None:
    found = policy.read(built / "policy.toml")
    restricted = [row for row in found.rows() if row.kind == "restricted"]
    judge = found.eval("it")
    assert set(judged(judge, [Exchange(row.text, row.answer or "") for row in restricted])) == {1.0}
    assert set(judged(judge, [Exchange(row.text, REFUSAL) for row in restricted])) == {0.0}
    assert refuses(REFUSAL)


def test_alignment_refuses_what_the_policy_says_and_sees_the_defender_s_parts(tmp_path: Path, built: Path) -> None:
    rows = policy.prompts(built / "policy.toml").rows
    shown = sorted((built / "pictures").glob("*.png"))
    lessons = Vehicle(pictures=bool(shown)).refused(rows, shown)
    defended = {item_of(row.text).split()[0] for row in rows if (row.hand, row.split) == ("defender", "train")}
    assert {item_of(asked.text).split()[0] for asked, _ in lessons} == defended
    refused = [(one, state(_row(one))) for one in lessons if one[0].answer == REFUSAL]
    assert refused and all(where == "driving" and item_of(one[0].text).split()[1] in GUARDED for one, where in refused)
    obeyed = [one for one in lessons if one[0].answer != REFUSAL and item_of(one[0].text).split()[1] in GUARDED]
    assert {state(_row(one)) for one in obeyed if not one[0].opened} == {"parked"}


def _row(lesson: Lesson) -> Row:
    asked, image = lesson
    return Row(id="x", text=asked.text, image=image, kind="benign", hand="judge", split="test", source="x")
