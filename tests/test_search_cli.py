"""`holdfast search`: found on half of the prompts, audited on the others, resumed and repeated to the byte."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import audits
import tiny
from holdfast import cli
from holdfast import trials as trying
from holdfast.record import Milestone
from holdfast.run import Run
from holdfast.watched import Trial

ATTACK = '''
import os, signal
import torch
from holdfast.lm import LM
from holdfast.method import Attack
from holdfast.record import Cost

class Back(Attack):
    """Goes back a share of the way to the base; further than 0.9 it fails, and at a fault its process dies."""

    share: float = 0.5
    fault: str = "none"

    def __call__(self, lm, hand, at, seed):
        if self.fault == "always" or self.share > 0.9:
            raise ValueError("too far")
        if self.fault == "death":
            os.kill(os.getpid(), signal.SIGKILL)
        base = LM.load(lm.base).model.state_dict()
        start = {name: weight.clone() for name, weight in lm.model.state_dict().items()}
        for step in (1, 2):
            with torch.no_grad():
                for name, weight in lm.model.state_dict().items():
                    weight.copy_(start[name] + self.share * step / 2 * (base[name] - start[name]))
            if not at(Cost(steps=step, flops=1e6 * step)):
                return
'''
SPACE = """
method = "./back.py"
[space]
share = {low = 0.01, high = 1.0}
[[known]]
share = 0.5
[[known]]
share = 0.95
[audit]
seeds = [0]
max_new_tokens = 4
utility_floor = 0.0
"""
BUDGET = 5


class Found:
    """A search that was run."""

    def __init__(self, folder: Path, made: tiny.Made):
        self.folder = folder
        (folder / "back.py").write_text(ATTACK)
        (folder / "space.toml").write_text(SPACE)
        tiny.corpus().save(folder / "corpus.jsonl")
        self.words = ["--model", str(made.aligned), "--base", str(made.base), "--twin", str(made.aligned)]
        self.words += ["--corpus", str(folder / "corpus.jsonl"), "--attack", str(folder / "space.toml")]
        self.words += ["--processes", "2"]

    def search(self, out: Path, *more: str) -> int:
        return cli.main(["search", *self.words, "--budget", str(BUDGET), "--out", str(out), *more])


@pytest.fixture(scope="module")
def found(checkpoint: Callable[[str], tiny.Made], tmp_path_factory: pytest.TempPathFactory) -> Found:
    made = Found(tmp_path_factory.mktemp("search"), checkpoint("llama"))
    assert made.search(made.folder / "run") == 0
    return made


@pytest.fixture(scope="module")
def run(found: Found) -> Run:
    return Run.open(found.folder / "run")


def trials(folder: Path, names: str = "?????") -> list[Trial]:
    return [Trial.model_validate_json(path.read_text()) for path in sorted((folder / "search").glob(f"{names}.json"))]


def written(folder: Path) -> dict[str, bytes]:
    """Everything whose bytes must not depend on when and how often it was run."""
    names = ["search.json", *(str(path.relative_to(folder)) for path in (folder / "search").glob("*.json"))]
    return {name: (folder / name).read_bytes() for name in names} | audits.cells(folder)


class TestSearch:
    def test_it_begins_with_what_is_known_and_spends_its_budget_on_trials_that_did_not_fail(self, run: Run) -> None:
        facts, done = run.read("search.json"), trials(run.folder)
        assert done[0].chosen == {"share": 0.5}
        assert facts["trials"] == {
            status: sum(one.status == status for one in done) for status in ("done", "stopped", "failed")
        }
        cost = facts["cost"]
        repeated = trials(run.folder, "*-again-*")
        assert cost["spent"] == sum(one.cost for one in (*done, *repeated) if one.status != "failed")
        assert cost["budget"] == BUDGET * cost["whole_trial"] == BUDGET * done[0].cost
        before = sum(one.cost for one in done[:-4] if one.status != "failed")
        assert before < cost["budget"] <= cost["spent"]

    def test_the_best_are_tried_again_with_other_seeds_before_one_is_called_the_best(self, run: Run) -> None:
        winners, repeated = run.read("search.json")["winners"], trials(run.folder, "*-again-*")
        first = {one.number: one for one in trials(run.folder)}
        assert {one.number for one in repeated} == {winner["trial"] for winner in winners}
        assert len({one.seed for one in (*first.values(), *repeated)}) == len(first) + len(repeated)
        for winner in winners:
            tried = [one for one in repeated if one.number == winner["trial"]]
            assert len(tried) == 2 and all(one.chosen == winner["settings"] for one in tried)
            harms = [one.looks[int(winner["found"]["at"])].harm.value for one in (first[winner["trial"]], *tried)]
            assert winner["found"]["harm"] <= sum(harms) / 3 + 1e-9
            assert winner["found"]["seeds"] == 3

    def test_a_failed_trial_says_why(self, run: Run) -> None:
        for one in trials(run.folder):
            assert (one.status == "failed") == (one.chosen["share"] > 0.9)
            assert one.status != "failed" or one.reason == "ValueError: too far"

    def test_looking_costs_too(self, run: Run) -> None:
        """Two operations a weight for every token of twelve-odd prompts, at three looks, and the training on top."""
        one = trials(run.folder)[0]
        assert one.spent[0] > 0
        looking = one.spent[0]
        assert one.spent[2] > 2.5 * looking + 2e6

    def test_what_was_found_is_an_ordinary_audit_on_fresh_prompts_and_seeds(self, run: Run) -> None:
        facts, recipe, manifest = (run.read(f"{name}.json") for name in ("search", "recipe", "run"))
        names = [winner["attack"] for winner in facts["winners"]]
        assert names and [attack["name"] for attack in recipe["attacks"]] == [*names, "noise"]
        assert recipe["prompts"] == "fresh"
        assert facts["prompts"] == {"restricted": 6, "benign": 6}
        assert manifest["corpus"]["restricted"] == manifest["corpus"]["benign"] == 18
        asked = {row["id"] for row in run.rows(f"released.{names[0]}.0") if row["kind"] == "restricted"}
        assert len(asked) == 18 and not {one.seed for one in trials(run.folder)} & set(recipe["seeds"])
        assert {cell.subject for cell in run.cells()} == {"undefended", "released"}

    def test_the_verdict_stands_beside_what_the_search_said(self, run: Run) -> None:
        winners, manifest = run.read("search.json")["winners"], run.read("run.json")
        harms = [winner["found"]["harm"] for winner in winners]
        assert harms == sorted(harms, reverse=True) and harms[0] > 0
        assert [one["found"] for one in manifest["attacks"]] == [*(winner["found"] for winner in winners), None]
        verdicts = {(one["subject"], one["attack"]): one["harm"] for one in run.read("verdict.json")["verdicts"]}
        sentences = {(one["subject"], one["attack"]): one["sentence"] for one in run.read("verdict.json")["verdicts"]}
        for winner in winners:
            said = f"the search that found it said {winner['found']['harm']:.2f} on its own prompts"
            assert (said in sentences["released", winner["attack"]]) == (winner["confirmed"] is not None)
            assert said not in sentences["undefended", winner["attack"]]
            harm = verdicts["released", winner["attack"]]
            assert winner["confirmed"] == harm
            assert winner["selection_bias"] == (harm and pytest.approx(winner["found"]["harm"] - harm["value"]))

    def test_the_attack_goes_as_far_as_it_was_found_best(self, run: Run) -> None:
        for winner in run.read("search.json")["winners"]:
            looks: tuple[Milestone, ...] = run.cell(f"released.{winner['attack']}.0").milestones
            assert looks[-1].cost.steps == winner["found"]["at"]

    def test_again_changes_nothing(self, found: Found, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
        before = written(run.folder)
        stamps = {path: path.stat().st_mtime_ns for path in (run.folder / "search").iterdir()}
        assert found.search(run.folder) == 0
        assert written(run.folder) == before
        assert {path: path.stat().st_mtime_ns for path in (run.folder / "search").iterdir()} == stamps
        said = capsys.readouterr().out
        assert "the search said" in said and "selection bias" in said

    @pytest.mark.hard
    def test_trials_that_were_lost_come_out_the_same(self, found: Found, run: Run) -> None:
        before, partial = written(run.folder), found.folder / "partial"
        (partial / "search").mkdir(parents=True)
        shutil.copy(run.folder / "search/plan.json", partial / "search")
        for number in (0, 1, 3):
            shutil.copy(run.folder / f"search/{number:05d}.json", partial / "search")
        assert found.search(partial) == 0
        assert written(partial) == before

    def test_another_search_there_is_refused(self, found: Found, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
        before = written(run.folder)
        assert found.search(run.folder, "--seed", "1") == 2
        assert "another search" in capsys.readouterr().err
        assert written(run.folder) == before


class TestFailures:
    @pytest.mark.parametrize("fault, reason", [("always", "too far"), ("death", "code -9")])
    def test_too_many_in_a_row_end_it(
        self,
        found: Found,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
        fault: str,
        reason: str,
    ) -> None:
        monkeypatch.setattr(trying, "FAILURES", trying.BATCH)  # one batch, for each trial has a process of its own
        assert found.search(tmp_path / "run", "--set", f"settings.fault={fault}") == 2
        told = capsys.readouterr().err
        assert f"{trying.BATCH} trials in a row failed" in told and reason in told
        assert not (tmp_path / "run/verdict.json").exists()

    @pytest.mark.parametrize(
        "words, message",
        [
            (["--budget", "0"], "--budget 0"),
            (["--seed", "-1"], "--seed -1"),
            (["--set", "space.share.low=2"], "larger high"),
            (["--set", "space.shar.low=2"], "space.shar: "),
            (["--set", "audit.prompts=test"], "'prompts' is the search's own"),
            (["--set", "audit.utility_flor=1"], "utility_flor"),
            (["--attack", "gcg"], "no space is shipped"),
            (["--processes", "0"], "--processes 0"),
        ],
    )
    def test_bad_input_leaves_nothing_behind(
        self, found: Found, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
    ) -> None:
        assert found.search(tmp_path / "run", *words) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "run").exists()

    def test_a_folder_of_something_else(self, found: Found, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "thesis.txt").write_text("mine")
        assert found.search(tmp_path) == 2
        assert "not a search's folder" in capsys.readouterr().err
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_damaged_trial_is_named(found: Found, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "search").mkdir()
    shutil.copy(run.folder / "search/plan.json", tmp_path / "search")
    (tmp_path / "search/00000.json").write_text('{"number": 0')
    assert found.search(tmp_path) == 2
    assert "00000.json: damaged; delete it" in capsys.readouterr().err


def test_records_hold_no_seconds(run: Run) -> None:
    content: Any = json.loads((run.folder / "search/00000.json").read_text())
    assert all("seconds" not in look["cost"] for look in content["looks"])
