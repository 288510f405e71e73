"""The corpus: three hands that share nothing, the public benchmarks' own files, and clusters of similar prompts."""

import csv
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast import corpus, likeness
from holdfast.corpus import Corpus, Item, Row
from holdfast.problem import Problem

WORDS = ("red", "green", "blue", "cat", "dog", "fish", "sun")
WILD = st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), min_size=1)


def row(number: int, text: str, hand: str = "defender", **others: str) -> Row:
    fields = {"kind": "benign", "split": "train", "source": "here"} | others
    return Row(id=f"r{number}", text=text, hand=hand, **fields)


def write_csv(path: Path, *rows: tuple[str, ...]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


def write_jsonl(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


# Hands and the corpus file


def test_a_prompt_in_two_hands_is_refused_whatever_its_case_and_punctuation() -> None:
    with pytest.raises(Problem, match="one prompt is in two hands") as problem:
        Corpus([row(1, "How do I bake bread?"), row(2, "how do i  bake: BREAD", "judge", split="test")])
    assert "'r1'" in str(problem.value) and "'r2'" in str(problem.value)


def test_one_hand_may_hold_a_prompt_twice_but_an_id_only_once() -> None:
    Corpus([row(1, "same"), row(2, "same")])
    with pytest.raises(Problem, match="id 'r1' is given twice"):
        Corpus([row(1, "one"), row(1, "two")])


def test_an_empty_corpus_and_an_empty_hand_say_what_to_add() -> None:
    with pytest.raises(Problem, match="holds no prompt"):
        Corpus([])
    hand = Corpus([row(1, "one")]).hand("judge")
    assert hand.of("benign") == []
    with pytest.raises(Problem, match="the judge's hand holds no restricted prompt"):
        hand.need("restricted")


@given(st.lists(st.tuples(WILD, st.none() | WILD), min_size=1, max_size=8))
def test_any_text_survives_the_file(
    tmp_path_factory: pytest.TempPathFactory, said: list[tuple[str, str | None]]
) -> None:
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    rows = [row(i, text).model_copy(update={"answer": answer}) for i, (text, answer) in enumerate(said)]
    Corpus(rows).save(path)
    assert Corpus.load(path).rows == tuple(rows)
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "line 2, row"),
        ('{"id": "a"}', "line 2, text"),
        (row(7, "x").model_dump_json().replace("benign", "evil"), "line 2, kind"),
        (row(7, "x").model_dump_json()[:-1] + ', "note": 1}', "line 2, note"),
        ("[]", "line 2, row"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text(row(1, "fine").model_dump_json() + "\n" + line + "\n")
    with pytest.raises(Problem, match=says) as problem:
        Corpus.load(path)
    assert str(path) in str(problem.value)


def test_a_missing_corpus_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(Problem, match=r"none\.jsonl: no such corpus file"):
        Corpus.load(tmp_path / "none.jsonl")


def test_a_variant_is_kept_and_left_out_where_there_is_none(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    rows = (row(1, "plainly"), row(2, "otherwise", variant="dialect"))
    Corpus(rows).save(path)
    assert Corpus.load(path).rows == rows
    assert [("variant" in line) for line in path.read_text().splitlines()] == [False, True]


@given(st.lists(st.sampled_from(WORDS), min_size=1), st.lists(st.sampled_from(WORDS)), st.lists(st.sampled_from(WORDS)))
def test_an_answer_is_right_wherever_it_stands(answer: list[str], before: list[str], after: list[str]) -> None:
    said, wanted = ", ".join([*before, *answer, *after]).upper(), " ".join(answer)
    assert corpus.right(said, wanted) == 1.0
    assert corpus.right(said, f"{wanted} moon") == corpus.right(f"un{wanted}s", wanted) == corpus.right(said, "?!") == 0


# The benchmarks' own files


def test_advbench(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "a.csv", ("goal", "target"), ("Do x, then\ny", 'Sure, here is "x"'))
    assert corpus.read_advbench(path) == [Item("Do x, then\ny", 'Sure, here is "x"')]


def test_jailbreakbench(tmp_path: Path) -> None:
    head = ("", "Goal", "Target", "Behavior", "Category", "Source")
    path = write_csv(tmp_path / "j.csv", head, ("0", "Do x", "Sure", "b", "Fraud", "s"))
    assert corpus.read_jailbreakbench(path) == [Item("Do x", "Sure", "Fraud")]


def test_xstest(tmp_path: Path) -> None:
    head = ("id", "prompt", "type", "label", "focus", "note")
    path = write_csv(tmp_path / "x.csv", head, ("1", "Kill a process?", "homonyms", "safe", "kill", ""))
    assert corpus.read_xstest(path) == [Item("Kill a process?", None, "safe")]
    write_csv(path, head, ("1", "Kill a process?", "homonyms", "perhaps", "kill", ""))
    with pytest.raises(Problem, match="'perhaps' is neither safe nor unsafe"):
        corpus.read_xstest(path)


def test_gsm8k_without_its_calculator(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "g.jsonl", {"question": "2 + 2?", "answer": "2+2=<<2+2=4>>4.\n#### 4"})
    assert corpus.read_gsm8k(path) == [Item("2 + 2?", "2+2=4.\n#### 4")]


def test_dolly_and_hh_prompts(tmp_path: Path) -> None:
    dolly = write_csv(
        tmp_path / "d.csv", ("instruction", "context", "response", "category"), ("Who?", "", "Somebody.", "qa")
    )
    prompts = write_jsonl(tmp_path / "h.jsonl", {"prompt": "Hello\u2028there"}, {"prompt": "2nd"})
    assert corpus.read_dolly(dolly) == [Item("Who?", "Somebody.")]
    assert corpus.read_hh_prompts(prompts) == [Item("Hello\u2028there"), Item("2nd")]


def test_dialogues_in_both_forms(tmp_path: Path) -> None:
    talk = [
        {"role": "system", "content": "Obey."},
        {"role": "user", "content": "First?"},
        {"role": "assistant", "content": "One."},
        {"role": "user", "content": "Second?"},
        {"role": "assistant", "content": "Two."},
    ]
    (tmp_path / "list.json").write_text(json.dumps([talk], indent=1))
    lines = write_jsonl(tmp_path / "lines.jsonl", {"messages": talk}, {"messages": talk[1:]})
    assert corpus.read_dialogues(tmp_path / "list.json") == [Item("First?", "One.")]
    assert corpus.read_dialogues(lines) == [Item("First?", "One.")] * 2
    for wrong in ("[[]]", "[3]", '{"messages": [{"role": "user"}]}', "{", ""):
        (tmp_path / "list.json").write_text(wrong)
        with pytest.raises(Problem, match=r"list\.json"):
            corpus.read_dialogues(tmp_path / "list.json")


CSV_READERS = [corpus.read_advbench, corpus.read_jailbreakbench, corpus.read_xstest, corpus.read_dolly]
JSONL_READERS = [corpus.read_gsm8k, corpus.read_hh_prompts]


@pytest.mark.parametrize("read", [*CSV_READERS, *JSONL_READERS, corpus.read_dialogues])
def test_missing_foreign_and_binary_files_are_named(tmp_path: Path, read: object) -> None:
    path = tmp_path / "some.file"
    with pytest.raises(Problem, match=r"some\.file: no such file; fetch"):
        read(path)
    path.write_bytes(b"\xff\xfe\x00binary\n")
    with pytest.raises(Problem, match=r"some\.file: cannot be read as text"):
        read(path)
    path.write_text('{"colour": "red"}\n')
    with pytest.raises(Problem, match=r"some\.file.*fetch"):
        read(path)
    with pytest.raises(Problem, match=str(tmp_path)):
        read(tmp_path)


def test_a_cut_file_is_told_by_its_line(tmp_path: Path) -> None:
    path = tmp_path / "cut.csv"
    path.write_text("goal,target\nDo x,Sure\nDo y\n")
    with pytest.raises(Problem, match=r"row 2: too few fields"):
        corpus.read_advbench(path)
    path.write_text("goal,target\n")
    with pytest.raises(Problem, match="holds no row"):
        corpus.read_advbench(path)
    path.write_text('{"question": "q", "answer": "a"}\n\n{"question": "q", "ans')
    with pytest.raises(Problem, match=r"line 3: not a JSON row with question, answer"):
        corpus.read_gsm8k(path)


@given(st.lists(st.tuples(WILD, WILD), min_size=1, max_size=8))
def test_csv_readers_give_back_any_text(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]) -> None:
    path = write_csv(tmp_path_factory.mktemp("csv") / "a.csv", ("goal", "target"), *rows)
    assert corpus.read_advbench(path) == [Item(*row) for row in rows]


# Repeats and likeness


def test_distinct_keeps_the_first_and_leaves_out_what_others_hold() -> None:
    items = [Item("One?", "a"), Item("one", "b"), Item("Two"), Item("Three!")]
    assert corpus.distinct(items, [Item("three")]) == [items[0], items[2]]


def test_a_benchmarks_own_overlap_is_refused() -> None:
    corpus.refuse_overlap([Item("One")], [Item("Two")], "GSM8K")
    with pytest.raises(Problem, match="GSM8K: 1 prompts of its test part"):
        corpus.refuse_overlap([Item("One")], [Item("one!"), Item("two")], "GSM8K")


def test_overlap_counts_content_words_only() -> None:
    assert likeness.overlap("Write a guide on how to bake bread", ["Explain how to bake cakes", "rye"]) == 0.5
    assert likeness.overlap("how to", ["how to"]) == 0.0
    assert likeness.overlap("bake bread", []) == 0.0


def test_near_counts_the_shorter_ones_content_words() -> None:
    asked = ["Explain how to bake bread", "How to?"]
    texts = ["bake three large brown rolls", "bread of rye, baked", "rye", "how to", "Give me a tutorial"]
    assert likeness.near(texts, asked) == [True, True, False, True, False]
    assert likeness.near(texts, asked, 0.6) == [False, False, False, True, False]
    assert likeness.near(texts, []) == [False] * 5


def test_clusters_chain_what_is_alike() -> None:
    texts = ["bake white bread", "bake rye bread", "rye whiskey bottles", "paint a fence", "Paint fences", "how to"]
    numbers = likeness.clusters(texts)
    assert numbers[0] == numbers[1] and numbers[3] == numbers[4]
    assert len({numbers[0], numbers[3], numbers[5]}) == 3
    assert likeness.clusters(["how", "to"]) == [0, 1]


@given(st.lists(st.lists(st.sampled_from(WORDS)).map(" ".join), max_size=12))
def test_no_text_shares_half_its_words_across_clusters(texts: list[str]) -> None:
    numbers = likeness.clusters(texts)
    assert len(numbers) == len(texts)
    for text, number in zip(texts, numbers, strict=True):
        assert likeness.overlap(text, [other for other, n in zip(texts, numbers, strict=True) if n != number]) < 0.5
