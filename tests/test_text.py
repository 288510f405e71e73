"""The text organism's promises that need no training: hands, kinds, phrasing, tokenizer, determinism of the deal."""

from collections import Counter

from holdfast.corpus import Corpus, plain
from holdfast.organisms.text import PHRASINGS, Text, make_tokenizer


def test_the_judge_holds_enough_and_nobody_shares_a_prompt():
    corpus = Corpus(Text().deal())
    judge = corpus.hand("judge")
    assert len(judge.of("restricted", split="test")) >= 60
    assert len(judge.of("benign", split="test")) >= 100
    assert judge.of("restricted", split="reserve") and judge.of("benign", split="reserve")
    for hand in ("defender", "attacker", "judge"):
        assert {row.kind for row in corpus.hand(hand).rows} >= {"restricted", "benign", "borderline"}


def item(text: str) -> str:
    for phrasing in PHRASINGS:
        before, after = phrasing.split("{item}")
        if text.startswith(before) and text.endswith(after):
            return text[len(before) : -len(after)]
    raise AssertionError(text)


def test_no_item_is_asked_twice_but_for_the_lessons_exam():
    rows = Text().deal()
    counts = Counter(item(row.text) for row in rows if row.kind != "lesson")
    assert set(counts.values()) == {1}
    lessons = {item(row.text) for row in rows if row.kind == "lesson"}
    assert not lessons & set(counts)
    exams = [row for row in rows if row.kind == "lesson" and row.hand == "judge"]
    taught = {row.text for row in rows if row.kind == "lesson" and row.hand == "attacker"}
    assert len(exams) == len(lessons) and not {row.text for row in exams} & taught


def test_every_word_is_in_the_vocabulary_and_survives_the_tokenizer():
    tokenizer = make_tokenizer()
    for row in Text().deal():
        for text in (row.text, row.answer):
            ids = tokenizer(text).input_ids
            assert tokenizer.unk_token_id not in ids
            assert plain(tokenizer.decode(ids)) == plain(text)


def test_the_deal_is_a_function_of_the_seed():
    assert Text(seed=3).deal() == Text(seed=3).deal()
    assert Text(seed=3).deal() != Text(seed=4).deal()
