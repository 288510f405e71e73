"""Tasks of lm-eval as utility: the same numbers as lm-eval's own HFLM finds, of the model where it stands, item by item."""

import contextlib
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import audits
import tiny
from holdfast import recipe, tier
from holdfast.drive import Exit
from holdfast.harness import Harness
from holdfast.lm import LM
from holdfast.problem import Problem

CHOICES = """
task: words
dataset_path: json
dataset_kwargs: {data_files: {test: words.jsonl, train: words.jsonl}}
test_split: test
fewshot_split: train
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
"""
LETTERS = """output_type: multiple_choice
doc_to_choice: "{{options}}"
metric_list: [{metric: acc}, {metric: acc_norm}]
"""
WRITTEN = """output_type: generate_until
doc_to_target: "{{options[answer]}}"
generation_kwargs: {until: [" o"], max_gen_toks: 5}
metric_list: [{metric: exact_match}]
"""


@pytest.fixture
def task(tmp_path: Path) -> Callable[..., Path]:
    """Write a task file beside its twelve items."""

    def write(rest: str = LETTERS) -> Path:
        rows = [
            {
                "question": " ".join(tiny.WORDS[(5 * number + place) % 30] for place in range(3)),
                "options": [" ".join(tiny.WORDS[(7 * number + 11 * place) % 30 :][:2]) for place in range(3)],
                "answer": number % 3,
            }
            for number in range(12)
        ]
        (tmp_path / "words.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (tmp_path / "words.yaml").write_text(CHOICES + rest)
        return tmp_path / "words.yaml"

    return write


def test_without_lm_eval_the_extra_is_named(task: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(Problem, match=r"lm-eval is not installed; pip install 'holdfast\[lm-eval\]'"):
        Harness(tasks=(str(task()),)).ready()


class TestNumbers:
    @pytest.fixture(autouse=True)
    def installed(self) -> None:
        pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")

    @pytest.fixture
    def theirs(self, task: Callable[..., Path]) -> Callable[..., list[dict[str, Any]]]:
        """What lm-eval itself finds, by its own model class."""

        def found(lm: LM, file: Path, **how: Any) -> list[dict[str, Any]]:
            from lm_eval import simple_evaluate
            from lm_eval.models.huggingface import HFLM
            from lm_eval.tasks import TaskManager

            model = HFLM(pretrained=lm.model, tokenizer=lm.tokenizer, batch_size=4)
            with contextlib.chdir(file.parent):
                manager = TaskManager(include_defaults=False)
                results = simple_evaluate(
                    model=model, tasks=[str(file)], task_manager=manager, bootstrap_iters=0, **how
                )
            return results["samples"]["words"]

        return found

    @pytest.mark.parametrize("architecture", ["llama", "gpt2"])
    def test_choices_as_lm_eval_s_own_model_scores_them(
        self, checkpoint: Callable[[str], tiny.Made], task: Callable[..., Path], theirs: Callable, architecture: str
    ) -> None:
        from holdfast.adapter import Adapter

        lm, file = LM.load(checkpoint(architecture).aligned, drive=tiny.DRIVE, device="cpu"), task()
        samples = theirs(lm, file, num_fewshot=2)
        said = Harness(tasks=(str(file),), num_fewshot=2, metric="acc_norm")(lm)
        assert {f"words/{one['doc_id']}": one["acc_norm"] for one in samples} == {
            id: one.score for id, one in said.items()
        }
        assert 0 < sum(one.score for one in said.values()) < 12

        class Asked:
            def __init__(self, args: tuple[str, str]):
                self.args = args

        asked = [Asked(args) for one in samples for args in one["arguments"]]
        expected = [resp[0] for one in samples for resp in one["resps"]]
        for (ours, greedy), (logprob, likeliest) in zip(Adapter(lm).loglikelihood(asked), expected, strict=True):
            assert ours == pytest.approx(logprob, abs=1e-4) and greedy == likeliest

    def test_answers_and_whole_texts_too(
        self, checkpoint: Callable[[str], tiny.Made], task: Callable[..., Path], theirs: Callable
    ) -> None:
        from lm_eval.models.huggingface import HFLM

        from holdfast.adapter import Adapter

        lm, file = LM.load(checkpoint("gpt2").base, drive=tiny.DRIVE, device="cpu"), task(WRITTEN)
        samples = theirs(lm, file)
        said = Harness(tasks=(str(file),))(lm)
        assert [one["filtered_resps"][0] for one in samples] == [one.answer for one in said.values()]
        assert any(one.answer for one in said.values()) and not any(" o" in one.answer for one in said.values())

        class Asked:
            def __init__(self, text: str):
                self.args = (text,)

        texts = [Asked(" ".join(tiny.WORDS)), Asked(tiny.WORDS[0])]
        hf = HFLM(pretrained=lm.model, tokenizer=lm.tokenizer, batch_size=1, max_length=127)
        assert Adapter(lm).loglikelihood_rolling(texts) == pytest.approx(hf.loglikelihood_rolling(texts), abs=1e-3)

    def test_it_asks_the_model_where_it_stands(
        self, checkpoint: Callable[[str], tiny.Made], task: Callable[..., Path]
    ) -> None:
        lm, asked = (
            LM.load(checkpoint("gpt2").base, drive=tiny.DRIVE, device="cpu"),
            Harness(tasks=(str(task(WRITTEN)),)),
        )
        whole = asked(lm)
        lm.drive = lm.drive.change(exit=Exit(depth=1))
        early = asked(lm)
        lm.drive = tiny.DRIVE
        lm.keep([0])
        assert early == asked(lm) != whole, "an exit is what is left when later blocks are gone"

    def test_in_the_drive_s_template(self, checkpoint: Callable[[str], tiny.Made], task: Callable[..., Path]) -> None:
        from holdfast.adapter import Adapter

        lm = LM.load(checkpoint("llama").aligned, drive=tiny.DRIVE.change(system="modor"), device="cpu")
        adapter = Adapter(lm, chat=True)
        assert adapter.apply_chat_template([{"role": "user", "content": "tarin"}]) == lm.prompt("tarin")
        file = task()
        assert Harness(tasks=(str(file),), chat=True)(lm).keys() == Harness(tasks=(str(file),))(lm).keys()

    @pytest.mark.parametrize(
        ("rest", "settings", "says"),
        [
            pytest.param(LETTERS, {"tasks": ("wordz",)}, "no task is called 'wordz'", marks=pytest.mark.hard),
            (LETTERS, {"metric": "f1"}, "its metric f1 is no mean over items of which more is better; there are acc, acc_norm"),
            (WRITTEN, {"metric": "exact_match,strict"}, "has no filter 'strict'"),
            (WRITTEN.replace("until:", "do_sample: true, until:", 1), {}, "draws its answers by chance"),
            ("output_type: loglikelihood_rolling\nmetric_list: [{metric: word_perplexity}]\n", {}, "it has word_perplexity"),
            (LETTERS.replace("acc}, ", "mcc}, "), {"metric": "mcc"}, "its metric mcc is no mean"),
            ("unsafe_code: true\n" + LETTERS, {}, "runs what the model writes"),
        ],
    )  # fmt: skip
    def test_what_cannot_be_utility(
        self, task: Callable[..., Path], rest: str, settings: dict[str, Any], says: str
    ) -> None:
        with pytest.raises(Problem, match=re.escape(says)):
            Harness(**{"tasks": (str(task(rest)),)} | settings).ready()

    def test_a_data_file_that_is_not_there(self, task: Callable[..., Path]) -> None:
        file = task()
        (file.parent / "words.jsonl").unlink()
        with pytest.raises(Problem, match=r"words\.yaml: cannot be loaded"):
            Harness(tasks=(str(file),)).ready()

    def test_an_audit_records_it_item_by_item(
        self, checkpoint: Callable[[str], tiny.Made], task: Callable[..., Path], tmp_path: Path
    ) -> None:
        task()
        path = audits.write(
            tmp_path,
            checkpoint("gpt2"),
            [{"name": "cut", "method": "drop_layers", "blocks": [1]}],
            utility="lm-eval:words.yaml",
        )
        cell, run = audits.run_cell(tmp_path / "run", path)
        assert cell.status == "done", cell.reason
        for index, look in enumerate(cell.milestones):
            items = {
                row["id"]: row for row in run.rows(cell.name) if row["milestone"] == index and row["kind"] == "task"
            }
            assert list(items) == [f"words/{number}" for number in range(12)]
            assert look.utility and look.utility.n == 12
            assert look.utility.value == pytest.approx(sum(row["utility"] for row in items.values()) / 12)
            assert all(row["harm"] is None for row in items.values())
        asked = run.read("recipe.json")["utility"]
        assert asked["tasks"] == [str(tmp_path / "words.yaml")] and asked["method"] == "lm-eval"

    def test_it_is_an_option_with_settings(
        self, checkpoint: Callable[[str], tiny.Made], task: Callable[..., Path], tmp_path: Path
    ) -> None:
        tiny.corpus().save(tmp_path / "corpus.jsonl")
        places = {"model": str(checkpoint("llama").aligned), "corpus": tmp_path / "corpus.jsonl"}
        chosen = tier.audit("smoke", **places, utility=f"lm-eval:{task()}", changes=("utility.limit=4",))
        assert isinstance(chosen.utility, Harness) and chosen.utility.limit == 4
        assert recipe.dump(chosen)["utility"]["limit"] == 4
