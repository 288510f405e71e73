"""Hard ground: thousands of spoiled inputs end in a clear message, and leave nothing beside their own folder."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fuzz
import tiny
from holdfast.problem import Problem
from holdfast.record import Cell
from holdfast.run import Run
from holdfast.sizes import refuse_absurd
from holdfast.tables import Tables

SHARES = {
    "recipe": 6000,
    "corpus": 3000,
    "policy": 3000,
    "records": 3000,
    "weights": 2500,
    "checkpoint": 1000,
    "judge": 500,
    "words": 500,
    "adapter": 300,
    "gguf": 200,
}
"""How many inputs of each surface `make hard` tries: 20,000 in all."""
PIECE = 250
QUICK = {
    "recipe": 60,
    "corpus": 30,
    "policy": 30,
    "records": 25,
    "weights": 100,
    "checkpoint": 25,
    "judge": 20,
    "words": 15,
}
MAY_BE_GOOD = {"judge", "words", "gguf"}
"""Surfaces of which hardly any spoiled input is good after all, or none need be."""


@pytest.fixture(scope="module")
def grounds(checkpoint: Callable[[str], tiny.Made], tmp_path_factory: pytest.TempPathFactory) -> fuzz.Grounds:
    folder, made = tmp_path_factory.mktemp("fuzz"), checkpoint("llama")
    return fuzz.Grounds(folder / "grounds", made, fuzz.as_gguf(made, folder / "model.gguf"))


def tried(surface: str, numbers: range, grounds: fuzz.Grounds, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("offline")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    codes, wrong = fuzz.fuzz(surface, numbers, grounds, place)
    print(f"{surface}: {len(numbers)} inputs, {codes[2]} refused, {codes[0]} good after all, {codes[1]} with code 1")
    assert not wrong, f"{len(wrong)} of {len(numbers)}:\n" + "\n\n".join(wrong[:5])
    assert codes[2] > len(numbers) / 4, "hardly any input was refused: nothing is tested"
    assert codes[0] or surface in MAY_BE_GOOD or len(numbers) < 50, (
        "no input was good: all fail before anything is done with them"
    )


@pytest.mark.parametrize("surface", QUICK)
def test_some(surface: str, grounds: fuzz.Grounds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried(surface, range(QUICK[surface]), grounds, tmp_path, monkeypatch)


@pytest.mark.hard
@pytest.mark.parametrize(
    ("surface", "start"), [(one, start) for one, count in SHARES.items() for start in range(0, count, PIECE)]
)
def test_all(surface: str, start: int, grounds: fuzz.Grounds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried(surface, range(start, min(start + PIECE, SHARES[surface])), grounds, tmp_path, monkeypatch)


def test_there_are_twenty_thousand() -> None:
    assert sum(SHARES.values()) == 20_000 and set(SHARES) == set(fuzz.SURFACES)


class TestTheWatch:
    """What the fuzzer would tell is told."""

    def told(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, act: Callable[[], int]) -> str:
        monkeypatch.setitem(fuzz.SURFACES, "bad", lambda *_: act)
        codes, (wrong,) = fuzz.fuzz("bad", range(1), None, tmp_path)
        assert not codes and "python tests/fuzz.py bad 0" in wrong
        return wrong

    def test_a_traceback(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert "ZeroDivisionError" in self.told(tmp_path, monkeypatch, lambda: 1 // 0)

    def test_a_file_beside(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def act() -> int:
            (tmp_path / "ground/stray.txt").touch()
            return 0

        assert "stray.txt" in self.told(tmp_path, monkeypatch, act)

    def test_a_file_anywhere(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def act() -> int:
            (tmp_path / "far.txt").write_text("x")
            return 0

        assert "far.txt" in self.told(tmp_path, monkeypatch, act)

    def test_what_does_not_end(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def act() -> int:
            while True:
                pass

        monkeypatch.setattr(fuzz, "PATIENCE", 0.2)
        assert "Hung" in self.told(tmp_path, monkeypatch, act)

    def test_what_eats_memory(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        assert "MemoryError" in self.told(tmp_path, monkeypatch, lambda: len(bytearray(1 << 40)))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
SAME_FOLDER = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


class TestProperties:
    @SAME_FOLDER
    @given(content=JSON, timing=JSON)
    def test_any_json_is_a_cell_or_a_problem(self, tmp_path: Path, content: object, timing: object) -> None:
        (tmp_path / "cells").mkdir(exist_ok=True)
        (tmp_path / "cells/a.b.0.json").write_text(json.dumps(content))
        (tmp_path / "cells/a.b.0.timing.json").write_text(json.dumps(timing))
        try:
            assert isinstance(Run(tmp_path).cell("a.b.0"), Cell)
        except Problem as problem:
            assert "a.b.0" in str(problem)

    @settings(max_examples=100, deadline=None)
    @given(
        st.lists(
            st.tuples(st.integers(0, 3), st.text(max_size=3), st.floats() | st.none(), st.sampled_from([0.0, 1.0])),
            max_size=12,
        )
    )
    def test_small_tables_hold_what_rows_do(self, rows: list[tuple[int, str, float | None, float]]) -> None:
        """Every finite score is found again to the last digit; of one that stands twice the last counts; NaN is none."""
        given = [{"milestone": m, "id": i, "harm": harm, "utility": useful} for m, i, harm, useful in rows]
        table = Tables().of_rows(given)
        for column in ("harm", "utility", "second"):
            for milestone in range(4):
                known = {
                    row["id"]: row[column]
                    for row in given
                    if row["milestone"] == milestone and row.get(column) is not None and abs(row[column]) < float("inf")
                }
                assert table.scores(milestone, column) == known

    @settings(max_examples=100, deadline=None)
    @given(JSON)
    def test_any_config_is_measured(self, content: object) -> None:
        try:
            refuse_absurd({"text_config": content}, 9, 99, Path("config.json"))
        except Problem as problem:
            assert "config.json" in str(problem)


def test_a_number_beyond_all_others_is_measured_too() -> None:
    refuse_absurd({"rope_theta": 10**400}, 9, 99, Path("config.json"))
    with pytest.raises(Problem, match=r"config.json: num_hidden_layers is 1e\+300"):
        refuse_absurd({"num_hidden_layers": 10**400}, 9, 99, Path("config.json"))


def test_tables_that_are_laid_out_alike_share_it() -> None:
    tables, row = Tables(), {"milestone": 0, "id": "a", "harm": 1.0}
    one, same, other = (tables.of_rows([row | more]) for more in ({}, {"harm": 0.0}, {"id": "b"}))
    assert one.layout is same.layout and one.layout is not other.layout
    assert one.values.nbytes == 1  # a byte for what is 0 or 1
