"""Is a new version worse: the words, and what they rest on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import runs
from holdfast import cli, regression
from holdfast.regression import Regression
from holdfast.run import Run

SOON, LATE, NEVER = (0.0, 0.9, 0.9, 0.9), (0.0, 0.1, 0.1, 0.9), (0.0, 0.0, 0.0, 0.0)
SEEDS = tuple(range(5))


def version(
    folder: Path,
    path: Sequence[float],
    hash: str,
    attacks: Sequence[str] = ("harmful",),
    utility: float = 1.0,
    **changes: Any,
) -> Run:
    facts = runs.subject("mine").model_copy(update={"hash": hash})
    made = [runs.attack(name, seeds=SEEDS) for name in attacks]
    cells = [runs.cell("mine", name, seed, runs.clock(*path, utility=(utility,))) for name in attacks for seed in SEEDS]
    return runs.save(folder, runs.manifest([facts], made).model_copy(update=changes), cells)


@pytest.fixture
def compared(tmp_path: Path) -> Any:
    def compare(old: dict[str, Any], new: dict[str, Any]) -> Regression:
        sides = [version(tmp_path / name, hash=name, **one) for name, one in (("a", old), ("b", new))]
        return regression.compare(*sides, None, None, 0.1)

    return compare


@pytest.mark.parametrize(
    ("old", "new", "word", "code"),
    [
        (NEVER, SOON, "worse: harmful", 4),
        (LATE, SOON, "worse: harmful", 4),
        (SOON, NEVER, "better: harmful", 0),
        (NEVER, NEVER, "not worse: nothing by more than 0.1", 0),
        (LATE, LATE, "no worse shown, which is not the same as no worse; open: harmful", 3),
    ],
    ids=["breaks now", "sooner", "holds now", "alike", "between milestones too far apart"],
)
def test_the_word_and_the_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], old: Sequence[float], new: Sequence[float], word: str, code: int
) -> None:
    for name, path in (("a", old), ("b", new)):
        version(tmp_path / name, path, name)
    assert cli.main(["diff", str(tmp_path / "a"), str(tmp_path / "b")]) == code
    assert word in capsys.readouterr().out


def test_what_it_does_before_any_attack_counts(compared: Any) -> None:
    found = compared({"path": NEVER}, {"path": NEVER, "utility": 0.5})
    lines = {one.name: one for one in found.lines}
    assert found.word == "worse" and lines["utility before any attack"].word == "worse"
    assert lines["harmful"].word == "not worse" and lines["utility before any attack"].loss.value == 0.5
    assert lines["over-refusal before any attack"].word == "worse", "what is not useful here is refused"


def test_p_values_are_adjusted_for_all_lines_together(compared: Any) -> None:
    found = compared({"path": NEVER}, {"path": SOON})
    (one,) = [line for line in found.lines if line.name == "harmful"]
    two = compared({"path": LATE}, {"path": LATE})
    assert one.adjusted < 0.05 and all(line.adjusted >= one.adjusted for line in found.lines)
    assert all(line.adjusted >= 0.5 for line in two.lines)


def test_an_attack_that_the_new_run_dropped_leaves_it_open(compared: Any) -> None:
    more = {"path": NEVER, "attacks": ("harmful", "benign")}
    assert compared(more, {"path": NEVER}).word == "no worse shown"
    found = compared({"path": NEVER}, more)
    assert found.word == "not worse" and [one.says for one in found.lines if one.name == "benign"] == [
        regression.ONLY_NEW
    ]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"version": "0.2"}, "other suite version"),
        ({"corpus": {"hash": "other"}}, "other corpus"),
        ({"harm": "asr"}, "other judge of harm"),
        ({"threshold": 0.4}, "other bar of a break"),
    ],
)
def test_what_was_measured_otherwise_is_not_comparable(compared: Any, changes: dict[str, Any], says: str) -> None:
    found = compared({"path": NEVER}, {"path": SOON} | changes)
    assert found.word == "not comparable" and not found.lines and says in found.reasons[0]


def test_the_same_weights_are_no_worse_whatever_chance_says(tmp_path: Path) -> None:
    sides = version(tmp_path / "a", NEVER, "#"), version(tmp_path / "b", SOON, "#")
    assert regression.compare(*sides, None, None, 0.1).word == "not worse"


@pytest.mark.parametrize("other", [{"folder": "https://here/v1#mine", "parameters": None}, {"parameters": 8}])
def test_the_same_hash_is_not_always_the_same_model(tmp_path: Path, other: dict[str, Any]) -> None:
    """Whoever serves an address may put other weights behind it; a config may leave out blocks of the same files."""
    old, new = version(tmp_path / "a", NEVER, "#"), version(tmp_path / "b", SOON, "#")
    for run in (new, *([old] if "folder" in other else [])):
        manifest = run.manifest()
        facts = manifest.subjects[0].model_copy(update=other)
        run.write("run.json", manifest.model_copy(update={"subjects": (facts,)}).model_dump(mode="json"))
    assert regression.compare(old, new, None, None, 0.1).word == "worse"


def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(version(tmp_path / "a", NEVER, "a").folder)
    assert cli.main(["diff", folder, str(tmp_path / "no")]) == 2 and "not a run" in capsys.readouterr().err
    assert (
        cli.main(["diff", folder, folder, "--subject", "mein"]) == 2
        and "did you mean 'mine'" in capsys.readouterr().err
    )
    assert cli.main(["diff", folder, folder, "--margin", "0"]) == 2 and "--margin" in capsys.readouterr().err
