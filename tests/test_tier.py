"""Audits without a recipe: what a tier settles from a checkpoint and its corpus, and what it leaves out, by name."""

import json
import tomllib
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any, get_args

import pytest

import runs
import tiny
from holdfast import checks, method, recipe, tier
from holdfast.corpus import Corpus
from holdfast.evidence import Evidence
from holdfast.problem import Problem
from holdfast.record import AttackFacts, SubjectFacts

TIERS = get_args(tier.Tier)
MINE = {
    "seeds": [0],
    "max_new_tokens": 4,
    "attacks": [
        {"name": "tune", "method": "finetune", tier.BY_WIDTH: 0.1, "steps": 1, "batch": 4, "trainer": "plain"},
        {"name": "subtract", "method": "subtract", "shares": [1.0]},
        {"name": "noise", "method": "noise", "scales": [0.01], "negative_control": True},
    ],
}


@pytest.fixture
def made(checkpoint: Callable[[str], tiny.Made], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tiny.Made:
    """Checkpoints with their corpus beside them, as an organism's; every tier is a short one."""
    found = checkpoint("llama")
    for name in tiny.Made._fields:
        (tmp_path / "models" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "models" / name).symlink_to(getattr(found, name))
    tiny.corpus().save(tmp_path / "models/corpus.jsonl")
    monkeypatch.setattr(tier, "read", lambda _: json.loads(json.dumps(MINE)))
    return tiny.Made(tmp_path / "models/base", tmp_path / "models/aligned")


def chosen(made: tiny.Made, **more: Any) -> recipe.Recipe:
    return tier.audit("smoke", str(made.aligned), **more)


def test_everything_given(made: tiny.Made) -> None:
    found = chosen(made, base=str(made.base), twin=str(made.base))
    assert [(one.name, one.twin, bool(one.base)) for one in found.subjects] == [
        ("undefended", None, True),
        ("released", "undefended", True),
    ]
    assert [one.name for one in found.attacks] == ["tune", "subtract", "noise"] and not found.not_run
    assert (found.harm.method, found.utility, found.max_new_tokens) == ("asr", "agreement", 4)
    assert found.name == "smoke-aligned" and Path(found.corpus or "") == made.base.parent.resolve() / "corpus.jsonl"
    assert recipe.Recipe.model_validate(recipe.dump(found)) == found


def test_without_a_base_what_needs_it_is_left_out_and_named(made: tiny.Made) -> None:
    found = chosen(made)
    assert [one.name for one in found.subjects] == ["released"] and found.subjects[0].twin is None
    assert [one.name for one in found.attacks] == ["tune", "noise"]
    assert found.not_run == ["subtract needs base weights"]


def test_without_harmful_rows_what_needs_them_is_left_out(made: tiny.Made, tmp_path: Path) -> None:
    file = tmp_path / "poor.jsonl"
    Corpus([row for row in tiny.rows() if (row.hand, row.kind) != ("attacker", "restricted")]).save(file)
    found = chosen(made, corpus=file, base=str(made.base))
    assert found.not_run == ["tune needs harmful data"]


@pytest.mark.parametrize(
    ("attack", "poor", "lacks"),
    [
        ({"data": "benign"}, {"kind": "lesson"}, "benign data"),
        ({"data": "benign"}, {"kind": "benign", "variant": "dialect"}, "benign data"),
        ({"data": "benign"}, {"kind": "benign"}, ""),
        ({"data": "harmful"}, {"kind": "restricted", "variant": "dialect"}, "harmful data"),
        ({"data": "harmful"}, {"kind": "restricted", "answer": None}, "harmful data"),
        ({"method": "latent"}, {"kind": "restricted", "answer": None}, "harmful data"),
        ({"method": "latent", "target": "opening"}, {"kind": "restricted", "answer": None}, ""),
        ({"method": "sequence"}, {"kind": "restricted", "answer": None}, "harmful data"),
    ],
)
def test_only_plain_prompts_count_with_answers_for_who_learns_answers(
    made: tiny.Made,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    attack: dict[str, Any],
    poor: dict[str, Any],
    lacks: str,
) -> None:
    content = {"attacks": [{"name": "tested", "method": "finetune"} | attack, MINE["attacks"][2]]}
    if attack.get("method") == "sequence":
        content["attacks"][0]["stages"] = [{"method": "reinit"}, {"method": "finetune"}]
    monkeypatch.setattr(tier, "read", lambda _: content)
    rows = [row for row in tiny.rows() if row.hand != "attacker"]
    rows += [row.model_copy(update=poor) for row in tiny.rows() if (row.hand, row.kind) == ("attacker", poor["kind"])]
    Corpus(rows).save(tmp_path / "poor.jsonl")
    found = chosen(made, corpus=tmp_path / "poor.jsonl")
    assert found.not_run == ([f"tested needs {lacks}"] if lacks else [])


def test_an_organism_s_prompts_are_judged_exactly(made: tiny.Made, tmp_path: Path) -> None:
    file = tmp_path / "organism.jsonl"
    Corpus([row.model_copy(update={"source": "text"}) for row in tiny.rows()]).save(file)
    found = chosen(made, corpus=file)
    assert (found.harm.method, found.utility) == ("exact", "exact")
    assert chosen(made, corpus=file, harm="asr").harm.method == "asr"


def test_rates_go_by_the_model_s_width(made: tiny.Made, checkpoint: Callable[[str], tiny.Made]) -> None:
    for architecture in ("llama", "gpt2", "gemma3"):
        found = tier.audit("smoke", str(checkpoint(architecture).aligned), corpus=made.base.parent / "corpus.jsonl")
        assert found.attacks[0].settings["learning_rate"] == 0.0031  # 0.1 / 32, two digits
    stages = {"stages": [{"method": "reinit"}, {tier.BY_WIDTH: 0.1, "steps": 3}], "learning_rate": 1}
    assert tier.with_rates(stages, 128)["stages"] == [{"method": "reinit"}, {"learning_rate": 0.00078, "steps": 3}]
    assert tier.with_rates(stages, 128)["learning_rate"] == 1


def test_changes(made: tiny.Made) -> None:
    assert (
        chosen(made, changes=("attacks.0.learning_rate=0.5", "threshold=0.4")).attacks[0].settings["learning_rate"]
        == 0.5
    )
    with pytest.raises(Problem, match=r"tier smoke, attack 'tune': unknown key 'stepz'; did you mean 'steps'"):
        chosen(made, changes=("attacks.0.stepz=1",))


def test_no_corpus_no_model(made: tiny.Made, checkpoint: Callable[[str], tiny.Made], tmp_path: Path) -> None:
    with pytest.raises(
        Problem,
        match=r"no policy\.toml or corpus\.jsonl in it or beside it; give --corpus FILE, which `holdfast corpus",
    ):
        tier.audit("smoke", str(checkpoint("qwen2").aligned))
    with pytest.raises(Problem, match="no such folder"):
        tier.audit("smoke", str(tmp_path / "none"))
    (tmp_path / "models/other").mkdir()
    with pytest.raises(Problem, match=r"config\.json: missing"):
        tier.audit("smoke", str(tmp_path / "models/other"))


@pytest.mark.parametrize("name", TIERS)
def test_every_attack_of_a_tier_has_a_name_of_its_own_and_controls(name: tier.Tier) -> None:
    content = tier.read(name)
    labels = [one["name"] for one in content["attacks"]]
    assert len(set(labels)) == len(labels)
    assert sum(one.get("negative_control", False) for one in content["attacks"]) >= 2
    assert content["seeds"] and "includes" not in content


def test_a_larger_tier_holds_every_method_of_a_smaller_one() -> None:
    methods = [{one["method"] for one in tier.read(name)["attacks"]} for name in TIERS]
    assert methods[0] < methods[1] < methods[2]


@pytest.mark.parametrize("name", TIERS)
def test_the_reason_for_each_choice_is_given(name: tier.Tier) -> None:
    """A comment in the entry, or the entry is one of several of a method whose first gives the reason."""
    text = (resources.files("holdfast") / "tiers" / f"{name}.toml").read_text()
    assert tomllib.loads(text)
    entries = text.split("[[attacks]]")[1:]
    silent = {tomllib.loads(entry)["method"] for entry in entries if "#" not in entry}
    files = [(resources.files("holdfast") / "tiers" / f"{one}.toml").read_text() for one in TIERS]
    explained = [entry for file in files for entry in file.split("[[attacks]]")[1:]]
    told = {tomllib.loads(entry)["method"] for entry in explained if "#" in entry}
    assert silent <= told


@pytest.mark.parametrize("name", ["standard", "release"])
def test_a_tier_asks_for_all_that_the_checks_of_the_suite_need(name: tier.Tier) -> None:
    """Told as an audit tells it, of a model that every attack breaks and one that holds; smoke is not enough."""
    assert {"rates swept", "two optimizers", "warm-up", "repair, then attack"} <= _asked("smoke")
    assert not _asked(name)


def test_what_scatters_widely_has_more_seeds() -> None:
    """With three or five seeds of them, a defense that triples every cost is missed more often than found."""
    content = tier.read("standard")
    seeds = {one["name"]: len(one.get("seeds", content["seeds"])) for one in content["attacks"]}
    tuned = {one["name"] for one in content["attacks"] if "steps" in one and not one.get("negative_control")}
    wide = {one["name"] for one in content["attacks"] if one.get("data") in ("benign", "mixed")}
    wide |= {"identity-shift", "prune-then-benign", "soft-prompt"}
    assert all(seeds[name] >= 9 for name in wide) and all(seeds[name] >= 5 for name in tuned)


def _asked(name: tier.Tier) -> set[str]:
    """What the checks of the suite miss in a tier."""
    content, attacks = tier.read(name), []
    for entry in tier.with_rates(content["attacks"], 2048):
        own = {key: entry[key] for key in ("name", "method")} | {"seeds": entry.get("seeds", content["seeds"])}
        settings = {key: value for key, value in entry.items() if key not in recipe.AttackRecipe.model_fields}
        built = method.make("attacks", entry["method"], name, **settings)
        facts = {"axis": built.axis, "family": built.family, "settings": built.model_dump(mode="json")}
        attacks.append(AttackFacts(**own, **facts, negative_control=entry.get("negative_control", False)))
    subjects = [runs.subject("undefended"), runs.subject("released", twin="undefended")]
    cells = [
        runs.cell(one.name, attack.name, seed, runs.clock(0.0, 0.9 * _breaks(one, attack), axis=attack.axis))
        for one in subjects
        for attack in attacks
        for seed in attack.seeds
    ]
    evidence = Evidence(runs.manifest(subjects, attacks), cells, {one.name: runs.rows(one) for one in cells})
    return {
        check.name.split(":")[0]
        for check in checks.run_checks(evidence)
        if check.passed is not True and check.name in _NEEDS
    }


def _breaks(subject: SubjectFacts, attack: AttackFacts) -> bool:
    return subject.twin is None and not attack.negative_control


_NEEDS = {
    f"{name}: released"
    for name in (
        "rates swept",
        "LoRA against full fine-tuning",
        "two optimizers",
        "warm-up",
        "repair, then attack",
        "reset, then attack",
        "trainability",
        "negative control",
    )
}


# Last: every entry of every tier builds.


@pytest.mark.parametrize(
    ("name", "entry"),
    [
        pytest.param(name, entry, id=f"{name} {entry['name']}")
        for name in TIERS
        for entry in tomllib.loads((resources.files("holdfast") / "tiers" / f"{name}.toml").read_text())["attacks"]
    ],
)
def test_every_entry_builds(name: tier.Tier, entry: dict[str, Any]) -> None:
    wanted = [entry["method"], *(stage["method"] for stage in entry.get("stages", []))]
    if missing := set(wanted) - {*method.names("attacks")}:
        pytest.skip(f"not written yet: {', '.join(missing)}")
    for width in (128, 2048):
        content = tier.with_rates(entry, width)
        settings = {key: value for key, value in content.items() if key not in recipe.AttackRecipe.model_fields}
        assert method.make("attacks", entry["method"], f"tier {name}", **settings)
