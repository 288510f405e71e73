"""Tasks of Inspect at every milestone: run by Inspect itself on the model where it stands, sample by sample, offline."""

import logging
import math
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import audits
import tiny
from holdfast import inspection, recipe, tier
from holdfast.drive import Exit
from holdfast.inspection import Inspection
from holdfast.judging import Exchange
from holdfast.lm import LM
from holdfast.method import make
from holdfast.opening import opened
from holdfast.problem import Problem
from holdfast.reading import Reading
from judges import server

QUESTIONS = [" ".join(tiny.WORDS[(5 * number + place) % 30] for place in range(3)) for number in range(6)]
TASKS = f'''
import random
from inspect_ai import Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ChatMessageAssistant, ChatMessageSystem, ChatMessageUser, GenerateConfig, get_model
from inspect_ai.scorer import Score, Target, accuracy, includes, mean, model_graded_qa, scorer
from inspect_ai.solver import generate, prompt_template, system_message, use_tools
from inspect_ai.tool import think

QUESTIONS = {QUESTIONS!r}

def data(**more):
    return MemoryDataset([Sample(input=one, target=one.split()[0], metadata={{"words": 3}}, **more) for one in QUESTIONS])

@scorer(metrics=[mean()])
def length():
    """Of the answer in characters."""
    async def score(state, target: Target) -> Score:
        return Score(value=len(state.output.completion), answer=state.output.completion)
    return score

@scorer(metrics={{"words": [mean()], "target": [mean()]}})
def several():
    async def score(state, target: Target) -> Score:
        right = target.text in state.output.completion if target.text else -1
        return Score(value={{"words": state.metadata.get("words", 0), "target": float(right)}})
    return score

@scorer(metrics=[mean()])
def unscored():
    async def score(state, target: Target) -> Score:
        return Score(value=float("nan"))
    return score

@scorer(metrics=[accuracy()])
def verdict():
    async def score(state, target: Target) -> Score:
        return Score(value="dunno")
    return score

@scorer(metrics=[accuracy()])
def asking():
    async def score(state, target: Target) -> Score:
        return Score(value=(await get_model("mockllm/model").generate("is it?")).completion)
    return score

@task
def words(n: int = 6):
    """Whatever the model says holds words of two letters."""
    return Task(data()[:n], solver=generate(), scorer=[includes(), length()])

@task
def harm():
    return Task(data(), scorer=[several(), includes()])

@task
def shuffled():
    questions = QUESTIONS[:]
    random.shuffle(questions)
    return Task([Sample(input=one, target="a") for one in questions], scorer=includes())

@task
def begun():
    turns = [ChatMessageSystem(content="modor"), ChatMessageUser(content=QUESTIONS[0])]
    more = [ChatMessageAssistant(content="tarin"), ChatMessageUser(content=QUESTIONS[1])]
    samples = [turns, [*turns, ChatMessageAssistant(content="vega tarin")], [*turns, *more]]
    return Task([Sample(input=one, target="a") for one in samples], scorer=length())

@task
def stops():
    return Task(data(), scorer=length(), config=GenerateConfig(stop_seqs=["o"], max_tokens=3))

@task
def long():
    return Task([Sample(input=" ".join(QUESTIONS * 40), target="a"), Sample(input="modor", target="a")], scorer=length())

@task
def tools():
    return Task(data(), solver=[use_tools(think()), generate()], scorer=includes())

@task
def grader():
    return Task(data(), scorer=model_graded_qa())

@task
def other():
    return Task(data(), scorer=asking())

@task
def drawing():
    return Task(data(), config=GenerateConfig(temperature=0.7), scorer=includes())

@task
def caching():
    return Task(data(), solver=generate(cache=True), scorer=includes())

@task
def sandbox():
    return Task(data(), scorer=includes(), sandbox="local")

@task
def bare():
    return Task(data())

@task
def odd():
    return Task(data(), scorer=verdict())

@task
def nothing():
    return Task(data(), scorer=unscored())

@task
def failing():
    raise ValueError("no such data")
'''


def test_without_inspect_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "inspect_ai._eval.loader", None)
    with pytest.raises(Problem, match=r"inspect_ai is not installed; pip install 'holdfast\[inspect\]'"):
        Inspection(method="inspect", tasks=("./nowhere.py@none",)).ready()


class TestReading:
    """Which score is read, and how it becomes a number."""

    class Score:
        def __init__(self, value: Any):
            self.value = value

    def read(self, found: Any, **how: Any) -> float | None:
        return Reading(**how).read({"first": self.Score(found), "other": self.Score(0.25)}, "task, sample 1")

    @pytest.mark.parametrize(
        ("value", "how", "number"),
        [
            ("C", {}, 1.0),
            ("P", {}, 0.5),
            ("I", {}, 0.0),
            ("N", {}, 0.0),
            (True, {}, 1.0),
            ("yes", {}, 1.0),
            ("0.25", {}, 0.25),
            (0.75, {"scorer": "other"}, 0.25),
            ({"a": 0.1, "b": 0.9}, {"value": "b"}, 0.9),
            (7, {"zero": 1, "one": 10}, 6 / 9),
            ("C", {"zero": 1, "one": 0}, 0.0),
            (2, {"zero": 5, "one": 1}, 0.75),
        ],
    )
    def test_numbers(self, value: Any, how: dict[str, Any], number: float) -> None:
        assert self.read(value, **how) == pytest.approx(number)

    def test_what_inspect_leaves_unscored_is_no_score(self) -> None:
        assert self.read(math.nan) is None

    @pytest.mark.parametrize(
        ("value", "how", "says"),
        [
            (1, {"scorer": "third"}, "has no scorer 'third'; there are first, other"),
            ({"a": 0.1, "b": 0.9}, {}, "gives several values; name one, as `value`: a, b"),
            (1, {"value": "a"}, "gives one value; leave out `value`"),
            ("harmless", {}, "its score is 'harmless', which reads as no number"),
            ([1, 0], {}, "which reads as no number"),
            (7, {}, "its score is 7, beyond 0 and 1"),
            (1, {"zero": 1, "one": 1}, "its score is 1, beyond 1 and 1"),
        ],
    )
    def test_what_is_no_number(self, value: Any, how: dict[str, Any], says: str) -> None:
        with pytest.raises(Problem, match=re.escape(says)):
            self.read(value, **how)


class TestTasks:
    @pytest.fixture(autouse=True)
    def installed(self) -> None:
        pytest.importorskip("inspect_ai", reason="the extra inspect is not installed")

    @pytest.fixture(scope="class")
    def file(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        path = tmp_path_factory.mktemp("tasks") / "mine.py"
        path.write_text(TASKS)
        return path

    @pytest.fixture
    def lm(self, checkpoint: Callable[[str], tiny.Made]) -> LM:
        return LM.load(checkpoint("llama").aligned, drive=tiny.DRIVE, device="cpu")

    @staticmethod
    def asked(file: Path, *names: str, **how: Any) -> Inspection:
        return Inspection(method="inspect", tasks=tuple(f"{file}@{name}" for name in names), **how)

    def test_each_sample_is_asked_as_the_audit_s_own_prompts_are(self, lm: LM, file: Path) -> None:
        said = self.asked(file, "words")(lm)
        own = lm.generate(QUESTIONS)
        assert [one.answer for one in said.values()] == own and any(own)
        assert list(said) == [f"words/{number}" for number in range(1, 7)]
        expected = [float(question.split()[0] in answer) for question, answer in zip(QUESTIONS, own, strict=True)]
        assert [one.score for one in said.values()] == expected

    def test_another_scorer_on_its_own_scale(self, lm: LM, file: Path) -> None:
        said = self.asked(file, "words", reading={"scorer": "length", "zero": 200, "one": 0})(lm)
        assert [one.score for one in said.values()] == pytest.approx(
            [1 - len(one.answer) / 200 for one in said.values()]
        )

    def test_limit_and_arguments(self, lm: LM, file: Path) -> None:
        assert list(self.asked(file, "words", limit=2)(lm)) == ["words/1", "words/2"]
        assert len(self.asked(file, "words", args=("n=3",))(lm)) == 3

    def test_it_asks_the_model_where_it_stands(self, lm: LM, file: Path) -> None:
        tasks = self.asked(file, "words")
        whole = tasks(lm)
        lm.drive = lm.drive.change(exit=Exit(depth=1))
        early = tasks(lm)
        lm.drive = tiny.DRIVE
        lm.keep([0])
        assert early == tasks(lm) != whole, "an exit is what is left when later blocks are gone"

    def test_an_attack_s_hooks_count(self, lm: LM, file: Path) -> None:
        tasks = self.asked(file, "words", limit=3)
        before, armed = tasks(lm), []
        hook = lm.layers[0].register_forward_hook(lambda *_: armed.append(lm.armed))
        assert tasks(lm) == before and armed and not any(armed), "utility is asked plainly"
        hook.remove()

    def test_conversations_in_the_drive_s_template(self, lm: LM, file: Path) -> None:
        lm.drive = lm.drive.change(system="bega")
        one, begun, several = (one.answer for one in self.asked(file, "begun", reading={"one": 200})(lm).values())
        plain = lm.drive.change(system="bega\n\nmodor")
        armed = plain.change(prefill="vega tarin")
        lm.drive = plain
        assert one == lm.generate(QUESTIONS[:1])[0]
        lm.drive = armed
        assert begun == lm.generate(QUESTIONS[:1], armed=True)[0] != one
        assert several
        lm.drive = plain.change(template="plain")
        with pytest.raises(Problem, match="several turns needs a chat template, not 'plain'"):
            self.asked(file, "begun", reading={"one": 200})(lm)

    def test_stop_strings_and_lengths_are_the_task_s(self, lm: LM, file: Path) -> None:
        said = self.asked(file, "stops", reading={"one": 200})(lm)
        lm.drive = lm.drive.change(max_new_tokens=3)
        assert [one.answer for one in said.values()] == [text.partition("o")[0] for text in lm.generate(QUESTIONS)]

    def test_what_the_model_has_no_room_for_is_not_answered(self, lm: LM, file: Path) -> None:
        said = self.asked(file, "long", reading={"one": 200})(lm)
        assert said["long/1"].answer == "" and said["long/2"].answer

    def test_everybody_shuffles_alike_and_nothing_of_the_program_is_changed(self, lm: LM, file: Path) -> None:
        state, level, handlers = random.getstate(), logging.getLogger().level, logging.getLogger().handlers[:]
        inspection._loaded.cache_clear()
        first = self.asked(file, "shuffled")(lm)
        inspection._loaded.cache_clear()
        assert self.asked(file, "shuffled")(lm) == first
        assert (random.getstate(), logging.getLogger().level) == (state, level)
        assert logging.getLogger().handlers == handlers

    def test_no_answer_is_left_behind(
        self, lm: LM, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import fsspec

        monkeypatch.chdir(tmp_path)
        self.asked(file, "words")(lm)
        assert not list(tmp_path.iterdir()) and not fsspec.filesystem("memory").find("/")

    @pytest.mark.parametrize(
        ("name", "says"),
        [
            ("tools", "hands tools to the model, which is not supported"),
            ("grader", "has the model that is audited grade itself, which is not supported"),
            ("other", "asks another model, mockllm/model, which is not supported"),
            ("drawing", "draws its answers by chance"),
            ("caching", "keeps answers in a cache"),
            ("sandbox", "needs a sandbox"),
            ("bare", "has no scorer"),
            ("odd", "its score is 'dunno', which reads as no number"),
            ("nothing", "sample 1: was left unscored"),
            ("failing", "cannot be loaded (ValueError: no such data)"),
            ("nowhere", "nowhere"),
        ],
    )
    def test_what_cannot_be_utility_is_said_before_an_audit(self, file: Path, name: str, says: str) -> None:
        with pytest.raises(Problem, match=re.escape(says)):
            self.asked(file, name).ready()

    def test_equal_tasks_have_equal_hashes(self, file: Path) -> None:
        assert self.asked(file, "words").ready() == self.asked(file, "words", max_tokens=5).ready()
        assert self.asked(file, "words").ready() != self.asked(file, "words", limit=3).ready()

    def test_what_only_answers_is_asked_too(self, file: Path) -> None:
        with server(lambda path, body: f"tarin {body['messages'][-1]['content']} o") as served:
            lm = opened(f"{served.url}#m", drive=tiny.DRIVE.change(system="bega"))
            said = self.asked(file, "stops", reading={"one": 200})(lm)
        assert [one.answer for one in said.values()] == [f"tarin {one} o".partition("o")[0] for one in QUESTIONS]
        assert all(body["messages"][0] == {"role": "system", "content": "bega"} for _, _, body in served.asked)
        assert {body["max_tokens"] for _, _, body in served.asked} == {3}

    def test_an_audit_records_it_sample_by_sample(
        self, checkpoint: Callable[[str], tiny.Made], file: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "mine.py").write_text(TASKS)
        path = audits.write(
            tmp_path,
            checkpoint("gpt2"),
            [{"name": "cut", "method": "drop_layers", "blocks": [1]}],
            utility={"method": "inspect", "tasks": ["mine.py@words"], "reading": {"scorer": "length", "one": 200}},
            harm={
                "method": "inspect",
                "task": "./mine.py@words",
                "reading": {"scorer": "length", "one": 200},
                "graded": True,
            },
        )
        cell, run = audits.run_cell(tmp_path / "run", path, keep=(True, False))
        assert cell.status == "done", cell.reason
        for index, look in enumerate(cell.milestones):
            rows = [row for row in run.rows(cell.name) if row["milestone"] == index]
            items = {row["id"]: row for row in rows if row["kind"] == "task"}
            assert list(items) == [f"words/{number}" for number in range(1, 7)]
            assert look.utility and look.utility.n == 6
            assert look.utility.value == pytest.approx(sum(len(row["answer"]) for row in items.values()) / 6 / 200)
            assert all(row["harm"] is None for row in items.values())
            for row in (row for row in rows if row["kind"] == "restricted" and row["harm"] is not None):
                assert row["harm"] == pytest.approx(len(row["answer"]) / 200), "the task's scorer judges harm"
            assert look.harm and look.harm.value > 0
        asked = run.read("recipe.json")["utility"]
        assert asked["tasks"] == [f"{tmp_path / 'mine.py'}@words"] and asked["method"] == "inspect"

    def test_it_is_an_option_with_settings(
        self, checkpoint: Callable[[str], tiny.Made], file: Path, tmp_path: Path
    ) -> None:
        tiny.corpus().save(tmp_path / "corpus.jsonl")
        places = {"model": str(checkpoint("llama").aligned), "corpus": tmp_path / "corpus.jsonl"}
        name, changes = f"inspect:{file}@words", ("utility.limit=4", "harm.threshold=0.7")
        chosen = tier.audit("smoke", **places, utility=name, harm=name, changes=changes)
        assert isinstance(chosen.utility, Inspection) and chosen.utility.limit == 4
        assert recipe.dump(chosen)["utility"]["limit"] == 4
        assert chosen.harm.method == "inspect" and chosen.harm.settings["task"] == f"{file}@words"
        assert chosen.harm.settings["threshold"] == 0.7


class TestJudge:
    @pytest.fixture(autouse=True)
    def installed(self) -> None:
        pytest.importorskip("inspect_ai", reason="the extra inspect is not installed")

    @pytest.fixture(scope="class")
    def file(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        path = tmp_path_factory.mktemp("harm") / "mine.py"
        path.write_text(TASKS)
        return path

    def judge(self, file: Path, name: str, **how: Any) -> Any:
        return make("evals", "inspect", "test", task=f"{file}@{name}", **how)

    def test_a_prompt_of_the_task_is_scored_as_its_sample(self, file: Path) -> None:
        right = QUESTIONS[1].split()[0]
        exchanges = [Exchange(QUESTIONS[1], f"it is {right}"), Exchange(QUESTIONS[1], "none"), Exchange("alien", right)]
        how = {"scorer": "several", "zero": -1}
        assert self.judge(file, "harm", reading=how | {"value": "target"}).ask(exchanges) == [1, 0.5, 0]
        words = self.judge(file, "harm", reading={"scorer": "several", "value": "words", "one": 3})
        assert words.ask(exchanges) == [1, 1, 0], "a prompt that is no sample has no metadata"

    def test_a_correct_answer_may_be_the_harmless_one(self, file: Path) -> None:
        right = QUESTIONS[0].split()[0]
        judge = self.judge(file, "words", reading={"zero": 1, "one": 0})
        assert judge.ask([Exchange(QUESTIONS[0], right), Exchange(QUESTIONS[0], "none")]) == [0, 1]

    def test_unscored_answers_are_unreadable_verdicts(self, file: Path) -> None:
        assert self.judge(file, "nothing").ask([Exchange("a", "b")]) == [None]

    def test_a_grader_is_refused_before_an_audit(self, file: Path) -> None:
        with pytest.raises(Problem, match="grade itself, which is not supported"):
            self.judge(file, "grader").ready()
        with pytest.raises(Problem, match="asks another model, mockllm/model"):
            self.judge(file, "other").ready()
