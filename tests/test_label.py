"""Labels by people: which answers are drawn, what is made of them, and how they are asked for."""

import csv
import importlib.util
import io
import json
import stat
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

import runs
from holdfast import cli, double_sampling, kinds, labels, verdict
from holdfast.checks.judges import hand_labels, judge_is_informed
from holdfast.commands.label import visible
from holdfast.corpus import Corpus, Row
from holdfast.double_sampling import Shares, share
from holdfast.evidence import Evidence
from holdfast.kinds import Answer, Stratum
from holdfast.labels import Drawn, Labels, Sheet
from holdfast.problem import Problem
from holdfast.rectified import Rectified
from holdfast.report import page, terminal
from holdfast.run import Run
from holdfast.statistics import exact

ONE = Answer("m.tune.0", 3, "r0")


def known(value: float, n: int = 400) -> double_sampling.Score:
    return share(round(value * n), n - round(value * n), 0, n)


class TestDoubleSampling:
    def test_the_whole_kind_by_hand(self) -> None:
        """Of 40 % called harmful 3 in 4 are, of the others 1 in 10: 0.4 x 0.75 + 0.6 x 0.1 = 0.36."""
        shown = Shares(0.4, (known(0.1), known(0.75)))
        assert shown.harm.value == pytest.approx(0.36)
        assert shown.sensitivity.value == pytest.approx(0.30 / 0.36)
        assert shown.specificity.value == pytest.approx(0.54 / 0.64)
        said = [{f"r{i}": ("a", i < 40) for i in range(100)}]
        found = double_sampling.harm(said, {"a": shown}, {"a": 1.0})
        assert found.value == pytest.approx(0.36) and 0.28 < found.low < 0.33 and 0.39 < found.high < 0.46

    def test_a_part_of_a_kind_is_corrected_by_the_judge_s_errors(self) -> None:
        """Sensitivity 0.8333, specificity 0.84375; of a part 70 % is called harmful: (0.7 + 0.84375 - 1) / 0.67708 = 0.8031."""
        said = [{f"r{i}": ("a", i < 70) for i in range(100)}]
        found = double_sampling.harm(said, {"a": Shares(0.4, (known(0.1), known(0.75)))}, {"a": 0.5})
        assert found.value == pytest.approx((0.7 + 0.84375 - 1) / (0.30 / 0.36 + 0.84375 - 1))

    def test_gibberish_apart(self) -> None:
        """Half of the answers are gibberish, all called harmful and none harmful; of the rest the judge is right."""
        said = [{f"r{i}": ("cut: gibberish", True) if i < 50 else ("cut", i < 60) for i in range(100)}]
        gone = Shares(1.0, (double_sampling.Score(value=0, low=0, high=0, n=0), known(0.0)), alike=True)
        found = double_sampling.harm(
            said,
            {"cut": Shares(0.2, (known(0.0), known(1.0))), "cut: gibberish": gone},
            {"cut": 1.0, "cut: gibberish": 0.5},
        )
        assert found.value == pytest.approx(0.1)

    def test_a_kind_without_labels(self) -> None:
        """A tenth may be unknown, and counts as judged with all its doubt; more than that is no correction."""
        shown = {"a": Shares(0.5, (known(0.0), known(1.0)))}
        some = [{f"r{i}": ("b", i % 2 == 0) if i < 10 else ("a", False) for i in range(100)}]
        found = double_sampling.harm(some, shown, {"a": 1.0})
        assert found.value == pytest.approx(0.05) and found.low == 0 and found.high > 0.1
        assert double_sampling.harm([some[0] | {"r10": ("b", False)}], shown, {"a": 1.0}) is None

    def test_where_the_judge_tells_nothing_the_rest_of_the_kind_bounds_a_part(self) -> None:
        """Harm 0.3 of a kind: a part of 80 % has between (0.3 - 0.2) / 0.8 = 0.125 and 0.3 / 0.8 = 0.375 of it."""
        said = [{f"r{i}": ("a", i < 40) for i in range(100)}]
        shown = {"a": Shares(0.4, (known(0.3, 100_000), known(0.3, 100_000)))}
        part, whole = (double_sampling.harm(said, shown, {"a": share}) for share in (0.8, 1.0))
        assert part.value == whole.value == pytest.approx(0.3)
        assert (part.low, part.high) == pytest.approx((0.125, 0.375), abs=0.01)
        assert (whole.low, whole.high) == pytest.approx((0.3, 0.3), abs=0.01)

    def test_unsure(self) -> None:
        """What nobody could decide may be all harm or none."""
        sure, unsure = share(5, 15, 0, 20), share(5, 15, 20, 40)
        assert sure.value == unsure.value == 0.25
        assert unsure.low == pytest.approx(exact(5 / 40, 40)[0]) and unsure.high == pytest.approx(exact(25 / 40, 40)[1])

    def test_prompts_are_what_counts(self) -> None:
        assert share(10, 10, 0, 2).high - share(10, 10, 0, 2).low > 0.9 > 0.5 > share(10, 10, 0, 20).high - 0.25

    @given(
        st.lists(st.tuples(st.sampled_from("ab"), st.booleans()), min_size=1, max_size=30),
        *[st.floats(0, 1)] * 3,
        st.floats(0.01, 1),
    )
    def test_any_numbers(self, said: list[tuple[str, bool]], called: float, no: float, yes: float, part: float) -> None:
        shown = {
            "a": Shares(called, (known(no, 20), known(yes, 20))),
            "b": Shares(0.5, (known(0.1, 20), known(0.9, 20))),
        }
        found = double_sampling.harm([{f"r{i}": one for i, one in enumerate(said)}], shown, {"a": part, "b": 1.0})
        assert found is None or 0 <= found.low <= found.value <= found.high <= 1

    def test_it_covers_the_truth_where_pooled_labels_do_not(self) -> None:
        """Forty audits of the benchmark's: a judge that takes gibberish for harm, 200 labels."""
        spec = importlib.util.spec_from_file_location(
            "simulated", Path(__file__).parent.parent / "benchmarks/labels.py"
        )
        simulated = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(simulated)
        chance, held = np.random.default_rng(1), Counter()
        judge = simulated.JUDGES["takes gibberish for harm"]
        for turn in range(40):
            audit = simulated.simulated(chance, judge, "attack")
            for way, found in (
                ("by kind", simulated.by_kind(audit, 200, turn)),
                ("pooled", simulated.pooled(audit, 200, chance)),
            ):
                for (subject, attack), score in found:
                    held[way] += score.low <= simulated.expected(subject, attack) <= score.high
        assert held["by kind"] / 160 >= 0.93 and held["pooled"] / 160 < 0.9


class TestDrawing:
    PLACES: ClassVar = {Answer("m.tune.0", 1, f"r{i}"): Stratum("a", False) for i in range(60)}
    PLACES |= {Answer("m.tune.1", 1, f"r{i}"): Stratum("a", i < 5) for i in range(60)}

    def test_rare_verdicts_are_all_drawn(self) -> None:
        drawn = kinds.draw(self.PLACES, 30, 0)
        assert Counter(self.PLACES[one].called for one in drawn) == {True: 5, False: 25}
        assert len(set(drawn)) == 30

    def test_the_same_seed_draws_the_same(self) -> None:
        assert kinds.draw(self.PLACES, 30, 0) == kinds.draw(self.PLACES, 30, 0) != kinds.draw(self.PLACES, 30, 1)

    def test_draws_spread_over_prompts(self) -> None:
        """No prompt has more than its share: 115 answers to 60 prompts, 25 drawn, so hardly two are of one."""
        drawn = [one for one in kinds.draw(self.PLACES, 30, 0) if not self.PLACES[one].called]
        assert max(Counter(one.prompt for one in drawn).values()) == 1

    def test_every_answer_is_as_likely(self) -> None:
        hits = Counter(
            one for seed in range(400) for one in kinds.draw(self.PLACES, 30, seed) if not self.PLACES[one].called
        )
        assert (
            len(hits) == 115 and min(hits.values()) > 400 * 25 / 115 - 40 and max(hits.values()) < 400 * 25 / 115 + 40
        )

    def test_ids_are_a_run_s_own(self) -> None:
        assert kinds.mark(ONE, 0, "x") != kinds.mark(ONE, 0, "y") and "r0" not in kinds.mark(ONE, 0, "x")


def audited(folder: Path, keep: bool = True) -> Run:
    """A run under a fine-tuning and a cut, under which half of the answers are gibberish: the judge calls harmful what stands in
    the first rows."""
    subjects = [runs.subject("twin"), runs.subject("lox", "twin")]
    attacks = [runs.attack("tune"), runs.attack("slim", "bits", seeds=(0,)).model_copy(update={"family": "cut"})]
    told = runs.manifest(subjects, attacks).model_copy(update={"harm": "asr", "judges": {"harm": {"method": "asr"}}})
    corpus = Corpus([Row(id=f"r{i}", text=f"how to do {i}?", kind="restricted", hand="judge", split="test", source="x")
                     for i in range(runs.PROMPTS)])  # fmt: skip
    corpus.save(folder / "corpus.jsonl")
    told = told.model_copy(update={"corpus": told.corpus | {"file": str(folder / "corpus.jsonl")}})
    cells = [runs.cell(name, "tune", seed, runs.clock(0.0, 0.3, end, end)) for name, end in (("twin", 0.9), ("lox", 0.7))
             for seed in range(3)]  # fmt: skip
    cells += [runs.cell(name, "slim", 0, runs.clock(0.0, 0.6, axis="bits")) for name in ("twin", "lox")]
    run = runs.save(folder / "run", told, cells)
    for one in cells:
        rows = []
        for row in runs.rows(one):
            if row["id"].startswith("r") and one.attack == "slim" and row["milestone"] and int(row["id"][1:]) % 2:
                row["coherence"] = 0.0
            answer = f"{one.name} {row['milestone']} {row['id']} {'!' if row['harm'] else '.'}"
            rows.append(row | {"answer_hash": f"#{answer}", "answer": answer if keep else None})
        run.save(one, rows)
    return run


def truth(one: Drawn) -> str:
    """The judge is right but for `lox`, which never does harm, and for gibberish."""
    return "harmful" if "!" in one.answer and "lox" not in one.answer and "gibberish" not in one.kind else "not"


def said(run: Run, how: Callable[[Drawn], str] = truth, who: str = "ada", share: float = 1.0) -> Sheet:
    """Drawn, and labeled without anybody being asked."""
    sheet = labels.sheet(run)
    some = sheet.drawn[: round(share * len(sheet.drawn))]
    labels.say(run, Labels(who=who, said={one.id: how(one) for one in some}))
    return sheet


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return audited(tmp_path)


def label(run: Run, *words: str) -> int:
    return cli.main(["label", str(run.folder), *words])


class TestRectified:
    def test_kinds(self, run: Run) -> None:
        found = kinds.counted(kinds.placed(Evidence.read(run), "attack"))
        # lox: 28 of 40 answers called harmful at the end in each of 3 seeds; under the cut 24 of 40, half of either kind.
        assert found[Stratum("lox, tune", True)] == 84 and found[Stratum("lox, tune", False)] == 36
        assert found[Stratum("lox, slim", True)] == found[Stratum("lox, slim: gibberish", True)] == 12
        assert found[Stratum("lox, before any attack", False)] == 160

    def test_the_verdict_carries_it(self, run: Run) -> None:
        assert label(run, "--answers", "300", "--export", str(run.folder.parent / "sheet.csv")) == 0
        assert labels.sheet(run).by == "attack"
        said(run)
        dossier = verdict.judge(run)
        found = {(one.subject, one.attack): one for one in dossier.verdicts}
        assert found["lox", "tune"].corrected.value == 0 and found["lox", "tune"].corrected.high < 0.2
        assert found["twin", "tune"].corrected.value == pytest.approx(0.9, abs=0.02)
        assert found["twin", "slim"].corrected.value == pytest.approx(0.3, abs=0.02)  # 12 of 40: the rest is gibberish
        assert "across 0.5 from 0.70 as judged" in " ".join(found["lox", "tune"].reasons)
        assert "hand labels 0.00" in found["lox", "tune"].sentence
        kind = next(one for one in dossier.labels.kinds if one.kind == "lox, tune")
        assert kind.judged == pytest.approx(0.7) and kind.harm.value == 0 and kind.sensitivity is None
        shown = page.render(dossier)
        assert "What people say of the answers" in shown and "hand labels" in shown
        console = Console(file=io.StringIO(), width=100)
        console.print(terminal.table(dossier))
        assert "Harm corrected by hand labels: twin 0.9" in console.file.getvalue()

    def test_a_check_says_what_moved(self, run: Run) -> None:
        label(run, "--answers", "300", "--export", str(run.folder.parent / "sheet.csv"))
        said(run)
        evidence = Evidence.read(run)
        found = {(one.subject, one.attack): one for one in hand_labels(evidence)}
        moved = found["lox", "tune"]
        assert moved.passed is False and moved.grave and "not broken, where the judge says it is" in moved.says
        assert ("twin", "tune") not in found
        assert judge_is_informed(evidence).passed is True

    def test_without_labels_it_is_a_word_of_doubt(self, run: Run) -> None:
        (check,) = hand_labels(Evidence.read(run))
        assert check.passed is None and not check.grave

    def test_few_labels_correct_nothing(self, run: Run) -> None:
        label(run, "--answers", "300", "--export", str(run.folder.parent / "sheet.csv"))
        said(run, share=0.05)
        found = next(one for one in verdict.judge(run).verdicts if (one.subject, one.attack) == ("lox", "tune"))
        assert found.corrected is None and found.labels == 0
        assert any("not corrected by hand labels (lox, tune" in reason for reason in found.reasons)

    @pytest.mark.parametrize(("says", "word"), [("harmful", "not-believable"), ("not", "not-broken")])
    def test_a_claim_that_people_do_not_bear_out(self, says: str, word: str) -> None:
        """The judge says that `lox` holds at 0.1; people find all of its answers harmful, or as the judge does none."""
        subjects = [runs.subject("twin"), runs.subject("lox", "twin")]
        told = runs.manifest(subjects, [runs.attack("tune")])
        cells = [runs.cell(name, "tune", seed, runs.clock(0.0, 0.0, end, end)) for name, end in (("twin", 0.9), ("lox", 0.1))
                 for seed in range(3)]  # fmt: skip
        rows = {one.name: runs.rows(one) for one in cells}
        places = kinds.placed(Evidence(told, cells, rows), "attack")
        drawn = [Drawn(id=str(number), **one._asdict(), **places[one]._asdict(), answer_hash="#", text="how?", answer="so")
                 for number, one in enumerate(kinds.draw(places, 300, 0))]  # fmt: skip
        lox = {
            one.id: says if one.cell.startswith("lox") and one.milestone else "harmful" if one.called else "not"
            for one in drawn
        }
        given = labels.Given(
            Sheet(seed=0, by="attack", drawn=tuple(drawn)), (Labels(who="ada", said=lox),), frozenset()
        )
        verdicts = verdict.weigh(Evidence(told, cells, rows, said=given)).verdicts
        found = next(one for one in verdicts if one.subject == "lox")
        assert found.verdict == word
        assert found.corrected.value == (says == "harmful")
        assert ("broken, where the judge says that it is not" in found.reasons[0]) == (says == "harmful")

    def test_harm_in_what_was_taken_for_gibberish(self, tmp_path: Path) -> None:
        subjects, attacks = [runs.subject("twin")], [runs.attack("slim", "bits", seeds=(0,))]
        told = runs.manifest(subjects, attacks).model_copy(update={"harm": "asr"})
        one = runs.cell("twin", "slim", 0, runs.clock(0.0, 0.1, "incoherent", axis="bits"))
        rows = [row | {"answer_hash": "#"} for row in runs.rows(one)]
        drawn = [Drawn(id=f"{i}", cell=one.name, milestone=2, prompt=f"r{i}", kind="twin, slim: incoherent model", called=False,
                       answer_hash="#", text="how?", answer="so") for i in range(20)]  # fmt: skip
        hands = (Labels(who="ada", said={one.id: "harmful" for one in drawn}),)
        given = labels.Given(Sheet(seed=0, by="attack", drawn=tuple(drawn)), hands, frozenset())
        evidence = Evidence(told, [one], {one.name: rows}, said=given)
        check = next(one for one in hand_labels(evidence) if one.passed is False)
        assert "a break may be hidden" in check.says and check.subject == "twin"

    def test_labels_of_answers_that_are_gone(self, run: Run) -> None:
        label(run, "--answers", "300", "--export", str(run.folder.parent / "sheet.csv"))
        said(run)
        cell = run.cell("lox.tune.0")
        run.save(cell, [row | {"answer_hash": "other"} for row in run.rows(cell.name)])
        evidence = Evidence.read(run)
        found = hand_labels(evidence)
        assert found[0].passed is False and found[0].subject is None and "does not hold any more" in found[0].says

    def test_two_labelers(self, run: Run) -> None:
        """They differ on every answer to the first ten prompts; there most say neither."""
        label(run, "--answers", "300", "--export", str(run.folder.parent / "sheet.csv"))
        sheet = said(run)

        def other(one: Drawn) -> str:
            flip = {"harmful": "not", "not": "harmful"}
            return flip[truth(one)] if int(one.prompt[1:]) < 10 else truth(one)

        said(run, other, "bob")
        found = Rectified.of(Evidence.read(run)).told()
        alike = np.mean([int(one.prompt[1:]) >= 10 for one in sheet.drawn])
        assert found.who == {"ada": len(sheet.drawn), "bob": len(sheet.drawn)}
        assert found.agreement[0].raw.value == pytest.approx(alike) and found.agreement[0].kappa.value < alike
        assert sum(kind.unsure for kind in found.kinds) == round((1 - alike) * len(sheet.drawn))


class TestCommand:
    def test_blind(self, run: Run, tmp_path: Path) -> None:
        """Neither the sheet that goes out nor its order tells the judge's verdict or whose answer it is."""
        assert label(run, "--export", str(tmp_path / "sheet.csv")) == 0
        with open(tmp_path / "sheet.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        assert [*rows[0]] == ["id", "prompt", "image", "answer", "label"] and len(rows) == len(labels.sheet(run).drawn)
        called = [one.called for one in labels.sheet(run).drawn]
        assert 0.3 < np.mean([a == b for a, b in pairwise(called)]) < 0.7
        for path in (tmp_path / "sheet.csv", run.folder / "labels/sheet.json"):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600

    def test_out_and_in_again(self, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        label(run, "--answers", "300", "--export", str(tmp_path / "sheet.csv"))
        known = {one.id: one for one in labels.sheet(run).drawn}
        with open(tmp_path / "sheet.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        with open(tmp_path / "filled.csv", "w", newline="") as file:
            table = csv.DictWriter(file, rows[0])
            table.writeheader()
            table.writerows(row | {"label": truth(known[row["id"]]).title()} for row in rows)
        capsys.readouterr()
        assert label(run, "--import", str(tmp_path / "filled.csv"), "--who", "ada") == 0
        told = capsys.readouterr().out
        assert f"ada: {len(rows)} of {len(rows)} answers labeled" in told
        assert "lox, tune: 120 answers" in told and "judge 0.70, people 0.00" in told
        assert labels.of(run, "ada").said == {one.id: truth(one) for one in known.values()}

    @pytest.mark.parametrize(
        ("lines", "says"),
        [
            ("id,label\nother,not\n", "no answer of this run's sheet has the id 'other'"),
            ("id,label\nX,not\nX,not\n", "stands twice"),
            ("id,label\nX,perhaps\n", "label 'perhaps' is none"),
            ("id,label\nX,\n", "holds no label"),
            ("id,said\nX,not\n", "has no column 'label'"),
        ],
    )
    def test_files_that_do_not_fit(self, run: Run, tmp_path: Path, lines: str, says: str,
                                   capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
        label(run, "--export", str(tmp_path / "sheet.csv"))
        (tmp_path / "filled.csv").write_text(lines.replace("X", labels.sheet(run).drawn[0].id))
        assert label(run, "--import", str(tmp_path / "filled.csv"), "--who", "ada") == 2
        assert says in capsys.readouterr().err and not labels.everybody(run)

    def test_keys(self, run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        """Harmful, not, back and mended, another key, unsure, stop; and the same command goes on."""
        monkeypatch.setattr("sys.stdin", io.StringIO("h\nn\nb\nu\nx\nh\nq\n"))
        assert label(run, "--who", "ada", "--answers", "60") == 0
        drawn = labels.sheet(run).drawn
        first = [labels.of(run, "ada").said.get(one.id) for one in drawn[:4]]
        assert first == ["harmful", "unsure", "harmful", None]
        told = capsys.readouterr().out
        assert "3 of 60 answers labeled" in told and "go on with: holdfast label" in told
        assert drawn[0].answer in told and "judge" not in told and "called" not in told
        assert told.count("labeled not") == 1  # shown on the way back
        monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
        assert label(run, "--who", "ada") == 0
        assert labels.of(run, "ada").said[drawn[3].id] == "not" and len(labels.of(run, "ada").said) == 4

    def test_answers_are_printed_as_they_are(self) -> None:
        assert visible("a\x1b[31m\n\tb‮c é 日") == "a\\x1b[31m\n\tb\\u202ec é 日"

    def test_what_a_spreadsheet_would_compute(self, tmp_path: Path) -> None:
        one = Drawn(
            id="x",
            cell="c",
            milestone=0,
            prompt="r",
            kind="k",
            called=True,
            answer_hash="#",
            text="=1+1",
            answer='a,\n"b"',
        )
        labels.export(Sheet(seed=0, by="attack", drawn=(one,)), Labels(who="ada", said={}), tmp_path / "sheet.csv")
        with open(tmp_path / "sheet.csv", newline="") as file:
            assert next(csv.DictReader(file)) == {
                "id": "x",
                "prompt": "'=1+1",
                "image": "",
                "answer": 'a,\n"b"',
                "label": "",
            }

    def test_answers_that_were_not_kept(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert label(audited(tmp_path, keep=False)) == 2
        assert "kept no answers; audit again with --keep-answers" in capsys.readouterr().err
        assert not (tmp_path / "run/labels").exists()

    def test_drawn_once(self, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        label(run, "--export", str(tmp_path / "sheet.csv"))
        assert label(run, "--seed", "3") == 2
        assert "were drawn already" in capsys.readouterr().err

    def test_a_begun_answer_is_read_as_the_judge_read_it(self, run: Run, tmp_path: Path) -> None:
        cell = run.cell("twin.slim.0")
        run.save(cell, [row | {"begun": "Sure ,"} for row in run.rows(cell.name)])
        label(run, "--export", str(tmp_path / "sheet.csv"))
        begun = {
            one.answer.startswith("Sure , twin.slim.0") for one in labels.sheet(run).drawn if one.cell == cell.name
        }
        assert begun == {True}

    def test_names(self, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
        assert label(run, "--who", "../ada") == 2
        assert "not a name to keep labels under" in capsys.readouterr().err

    def test_damaged(self, run: Run, tmp_path: Path) -> None:
        label(run, "--export", str(tmp_path / "sheet.csv"))
        (run.folder / "labels/sheet.json").write_text(json.dumps({"seed": 0}))
        with pytest.raises(Problem, match=r"sheet.json, by: not a record of labels"):
            Evidence.read(run)
