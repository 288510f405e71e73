"""Rows of somebody's data sets, dealt to three hands as a table says."""

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from holdfast import gathering
from holdfast.corpus import Corpus
from holdfast.gathering import Share, Source
from holdfast.problem import Problem

FORMS: dict[str, Callable[[Path, list[dict]], None]] = {
    "rows.csv": lambda path, rows: _csv(path, rows),
    "rows.json": lambda path, rows: path.write_text(json.dumps(rows)) and None,
    "rows.jsonl": lambda path, rows: path.write_text("".join(json.dumps(row) + "\n" for row in rows)) and None,
    "rows.jsonl.gz": lambda path, rows: (
        path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode())) and None
    ),
    "rows.parquet": lambda path, rows: pq.write_table(pa.Table.from_pylist(rows), path),
}


def _csv(path: Path, rows: list[dict]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def save(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    ending = "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix
    FORMS[f"rows{ending}"](path, rows)
    return path


@pytest.mark.parametrize("name", FORMS)
def test_rows_go_where_the_table_says(tmp_path: Path, name: str) -> None:
    rows = [
        {"ask": f"She asks {n}", "about": "x" if n else "", "say": f"{n}", "kind": "odd" if n % 2 else "even"}
        for n in range(8)
    ]
    save(tmp_path / name, rows)
    deal = [Share(hand="judge", split="test", count=1), Share(hand="attacker", split="train")]
    source = Source(file=name, place=str(tmp_path), text="ask", more="about", answer="say", kind="benign", deal=deal)
    source = source.model_copy(update={"only": {"kind": "even"}, "replace": {"She": "They"}})
    dealt, notes = gathering.gathered({"mine": source}, 0)
    assert [(row.text, row.answer, row.hand, row.source) for row in dealt] == [
        ("They asks 0", "0", "judge", "mine"),
        *((f"They asks {n}\n\nx", f"{n}", "attacker", "mine") for n in (2, 4, 6)),
    ]
    assert notes == []


def test_the_first_exchange_of_a_dialogue_is_taken() -> None:
    transcript = "\n\nHuman: first\n\nAssistant: one\n\nHuman: second\n\nAssistant: two"
    messages = [("system", "be"), ("user", "first"), ("assistant", "one"), ("user", "second"), ("assistant", "two")]
    assert gathering.exchange(transcript) == ("first", "one")
    assert gathering.exchange([{"role": role, "content": said} for role, said in messages]) == ("first", "one")


def test_two_tasks_of_one_file_are_dealt_alike_and_a_shared_prompt_stays_in_one_hand(tmp_path: Path) -> None:
    save(tmp_path / "a.jsonl", [{"t": f"life {n}", "job": f"{n % 3}", "sex": f"{n % 2}"} for n in range(30)])
    save(tmp_path / "b.jsonl", [{"t": "life 3"}, {"t": "fresh"}])
    deal = [Share(hand="judge", split="test", count=10), Share(hand="defender", split="train")]
    common = {"file": "a.jsonl", "place": str(tmp_path), "text": "t", "order": "chance", "deal": deal}
    sources = {
        "job": Source(**common, answer="job", kind="benign"),
        "sex": Source(**common, answer="sex", kind="restricted"),
        "more": Source(
            file="b.jsonl", place=str(tmp_path), text="t", kind="benign", deal=[Share(hand="attacker", split="train")]
        ),
    }
    rows, notes = gathering.gathered(sources, 5)
    held = [{(row.text, row.hand) for row in rows if row.source == name} for name in ("job", "sex")]
    assert held[0] == held[1] and len(held[0]) == 30
    assert [row.text for row in rows if row.source == "more"] == ["fresh"]
    assert notes == ["more: 1 rows are left out, because another hand holds their prompts"]
    assert [row.text for row in rows if row.source == "job"] != [f"life {n}" for n in range(30)], "by chance"
    Corpus(rows)


@pytest.mark.parametrize(
    ("content", "changes", "says"),
    [
        (None, {}, "no such file"),
        ("{", {}, "cannot be read"),
        ("", {}, "holds no row"),
        ('{"t": "a"}\n', {"answer": "b"}, "row 1: has no column 'b' but t"),
        (
            '{"t": "a"}\n',
            {"deal": [Share(hand="judge", split="test", count=2)]},
            "2 of its rows are the judge's (test), and 1 are left",
        ),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, content: str | None, changes: dict, says: str) -> None:
    if content is not None:
        (tmp_path / "a.jsonl").write_text(content)
    deal = [Share(hand="judge", split="test")]
    source = Source(file="a.jsonl", place=str(tmp_path), text="t", kind="benign", deal=deal).model_copy(update=changes)
    with pytest.raises(Problem) as problem:
        gathering.gathered({"mine": source}, 0)
    assert says in str(problem.value) and str(tmp_path / "a.jsonl") in str(problem.value)
