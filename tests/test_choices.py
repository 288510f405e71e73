"""Multiple choice: which options stand beside an answer, and which of them a model picks."""

import math
from collections import Counter
from collections.abc import Callable, Sequence

import pytest
import torch

import tiny
from holdfast import choices
from holdfast.choices import Question
from holdfast.corpus import Corpus, Row
from holdfast.lm import LM, Fit
from holdfast.problem import Problem

Make = Callable[[str], tiny.Made]
NAMES = ("modor", "taley", "verin", "bewick")
"""Labels that the word-level tokenizer knows, in place of letters."""


@pytest.fixture
def lm(checkpoint: Make) -> LM:
    return LM.load(checkpoint("llama").aligned, drive=tiny.DRIVE, device="cpu")


def rows(*answers: str | None, kind: str = "benign", first: int = 0) -> list[Row]:
    return [
        Row(id=f"r{number}", text=f"q{number}", answer=answer, kind=kind, hand="judge", split="test", source="t")
        for number, answer in enumerate(answers, first)
    ]


def likelier(lm: LM, monkeypatch: pytest.MonkeyPatch, logprobs: dict[str, float]) -> list[tuple[str, str]]:
    """Have the model find answers as likely as told; returns what it will have been asked."""
    seen: list[tuple[str, str]] = []

    def fits(texts: Sequence[str], answers: Sequence[str]) -> list[Fit]:
        seen.extend(zip(texts, answers, strict=True))
        return [Fit(logprobs[answer], 0.0, 1) for answer in answers]

    monkeypatch.setattr(lm, "fits", fits)
    return seen


# Questions


def test_the_right_answer_stands_among_three_others_of_its_kind() -> None:
    some = rows(*(f"b{i}" for i in range(9))) + rows(*(f"h{i}" for i in range(9)), kind="restricted", first=9)
    asked = choices.questions(some)
    assert [question.row for question in asked] == some
    for row, options in asked:
        assert row.answer in options and len(set(options)) == choices.OPTIONS
        assert {option[0] for option in options} == {row.answer[0]}


def test_options_are_the_row_s_own_and_stand_anywhere() -> None:
    some = rows(*(f"a{i}" for i in range(200)))
    asked = choices.questions(some)
    assert sorted(asked, key=repr) == sorted(choices.questions(some[::-1]), key=repr)
    places = Counter(question.options.index(question.row.answer) for question in asked)
    assert all(30 <= places[place] <= 70 for place in range(4))  # 50 expected, standard deviation 6.1


def test_options_begin_as_the_answer_does_where_they_can() -> None:
    """Who knows the verb alone must guess."""
    brewed = [f"to brew {word} x" for word in "abcd"]
    tied = [f"to tie {word} x" for word in "abc"]
    asked = {question.row.answer: set(question.options) for question in choices.questions(rows(*brewed, *tied))}
    assert all(asked[answer] == set(brewed) for answer in brewed)
    assert all(asked[answer] > set(tied) for answer in tied)  # and one that is brewed


def test_rows_without_an_answer_are_not_asked_and_equal_answers_are_one() -> None:
    asked = choices.questions(rows("a", None, "", "b", "c", "d", "d"))
    assert [question.row.answer for question in asked] == ["a", "b", "c", "d", "d"]
    assert all(sorted(question.options) == ["a", "b", "c", "d"] for question in asked)
    with pytest.raises(Problem, match="the benign rows have 3 different answers"):
        choices.questions(rows("a", "b", "c", "c"))


# What is picked


def test_the_likeliest_text_is_picked(lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = likelier(lm, monkeypatch, {"a": -1.0, "b": -1.5, "c": -2.0, "d": -3.0})
    asked = choices.questions(rows("a", "b", "c", "d"))
    assert choices.by_text(lm, asked) == {"r0": 1.0, "r1": 0.0, "r2": 0.0, "r3": 0.0}
    assert seen == [(question.row.text, option) for question in asked for option in question.options]


@pytest.mark.parametrize(
    ("logprobs", "expected"),
    [
        ((-1.0, -1.0, -1.0, -1.0), [0.25, 0.25, 0.25, 0.25]),
        ((-1.0, -1.0, -2.0, -2.0), [0.5, 0.5, 0.0, 0.0]),
        ((math.nan, -1.0, -2.0, -2.0), [0.0, 0.0, 0.0, 0.0]),
        ((-math.inf, -1.0, -2.0, -2.0), [0.0, 0.0, 0.0, 0.0]),
    ],
)
def test_what_is_as_likely_shares_and_what_is_no_number_picks_nothing(
    lm: LM, monkeypatch: pytest.MonkeyPatch, logprobs: tuple[float, ...], expected: list[float]
) -> None:
    likelier(lm, monkeypatch, dict(zip("abcd", logprobs, strict=True)))
    assert [*choices.by_text(lm, choices.questions(rows(*"abcd"))).values()] == expected


def test_letters_are_asked_as_mmlu_s(lm: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    question = Question(rows("to brew b")[0], ("to brew a", "to brew b", "to tie c", "to tie d"))
    names = dict(zip(NAMES, (-3.0, -1.0, -2.0, -2.5), strict=True))
    seen = likelier(lm, monkeypatch, names)
    assert choices.by_letter(lm, [question], NAMES) == {"r0": 1.0}
    text = "q0\nmodor. to brew a\ntaley. to brew b\nverin. to tie c\nbewick. to tie d\nAnswer:"
    assert seen == [(text, name) for name in NAMES]
    likelier(lm, monkeypatch, names | {"verin": -0.5})
    assert choices.by_letter(lm, [question], NAMES) == {"r0": 0.0}


def test_letters_that_the_tokenizer_cannot_tell_apart_are_a_problem(lm: LM, checkpoint: Make) -> None:
    asked = choices.questions(rows(*"abcd"))
    for letters in (choices.LETTERS, ("modor", "modor", "taley", "verin"), ("modor taley", "verin", "bewick", "taley")):
        with pytest.raises(Problem, match="no token of its own for each of"):
            choices.by_letter(lm, asked, letters)
    other = LM.load(checkpoint("qwen2").aligned, drive=tiny.DRIVE, device="cpu")
    assert choices.by_letter(other, asked).keys() == {"r0", "r1", "r2", "r3"}


@pytest.mark.parametrize("template", ["chat", "plain"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "gpt2"])
def test_picks_are_what_the_model_itself_finds_likeliest(
    checkpoint: Make, corpus: Corpus, architecture: str, template: str
) -> None:
    """By a forward pass of its own, one text at a time."""
    lm = LM.load(checkpoint(architecture).aligned, drive=tiny.DRIVE.change(template=template), device="cpu")
    asked = choices.questions(corpus.hand("judge").of("restricted", "benign", split="test"))

    def mean(prompt: str, answer: str) -> float:
        ids, start = lm.encode(prompt, answer)
        with torch.no_grad():
            logs = lm.model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        return sum(float(logs[at - 1, ids[at]]) for at in range(start, len(ids) - 1)) / (len(ids) - 1 - start)

    found = choices.by_text(lm, asked)
    letters = NAMES if architecture == "llama" else choices.LETTERS
    lettered = choices.by_letter(lm, asked, letters)
    for row, options in asked:
        right = options.index(row.answer)
        by_text = [mean(row.text, option) for option in options]
        by_letter = [mean(Question(row, options).lettered(letters), letter) for letter in letters]
        assert found[row.id] == (max(by_text) == by_text[right])
        assert lettered[row.id] == (max(by_letter) == by_letter[right])
    assert 0 < sum(found.values()) < len(found)
