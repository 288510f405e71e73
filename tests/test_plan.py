"""`holdfast audit --plan`: cells, time and what can be seen, and nothing written."""

from collections.abc import Callable
from pathlib import Path

import pytest

import audits
import tiny
from holdfast.cli import main


def test_a_plan_runs_and_writes_nothing(checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    made: tiny.Made = checkpoint("llama")
    attacks = [{"name": "tune", **audits.TUNE}, {"name": "cut", "method": "prune"}]
    path = audits.write(tmp_path, made, attacks, seeds=[0, 1, 2])
    assert main(["audit", str(path), "--plan", "--processes", "2", "--out", str(tmp_path / "run")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "tune: 3 of 3 cells to run; 3 seeds" in said
    assert "cut: 3 of 3 cells to run; no clock" in said
    assert "in all 6 cells to run on 1 subject, 2 at a time: about" in said
    assert "whether the model breaks, and not whether a defense helps" in said
    assert "one look at the judge's prompts" in said
    assert not (tmp_path / "run").exists()


def test_beside_a_twin_a_plan_says_what_will_show(
    checkpoint: Callable[[str], tiny.Made], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once for each number of seeds, however many attacks have it."""
    made = checkpoint("llama")
    attacks = [{"name": name, **audits.TUNE, "seeds": [*range(n)]} for name, n in (("a", 3), ("b", 3), ("c", 1))]
    subjects = [{"name": "twin", "model": str(made.aligned)}, {"name": "lox", "model": str(made.base), "twin": "twin"}]
    path = audits.write(tmp_path, made, attacks, subjects=subjects)
    assert main(["audit", str(path), "--plan", "--out", str(tmp_path / "run")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("3 seeds of an attack with a clock show, in 80 of 100 audits, a break") == 1
    assert "1 seed of an attack with a clock cannot tell anything" in said and "c: 2 of 2 cells to run; 1 seed" in said
