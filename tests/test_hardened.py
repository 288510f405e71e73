"""Hardenings in processes of their own: the same weights however many run, in an order that serves, and none lost."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import audits
import tiny
from holdfast import auditing, cli, disk, hardened, hardening, processes, recipe
from holdfast.activity import Board
from holdfast.corpus import Corpus
from holdfast.hardened import Made
from holdfast.problem import Problem
from holdfast.run import Run

FAMILY = {"learning_rate": [1e-3, 1e-2], "batch": [4], "examples": [4]}
TAR = {"method": "tar", "steps": 3, "inner_steps": 2, "stride": 2, "batch": 4, "looked": 4, "varied": 4, "warmup": 0}
LOX = {"method": "lox", "rank": 2, "strength": 0.5}
HEAD = """
import os
import signal
from pathlib import Path
from holdfast.method import Defense
from holdfast.problem import Problem

class Mine(Defense):
    word: str = ""

    def __call__(self, lm, hand, log):
"""


@pytest.fixture(scope="module", autouse=True)
def ready() -> None:
    processes.prepare(["holdfast.hardened", "holdfast.defenses.lox", "holdfast.defenses.tar"])


@pytest.fixture(scope="module")
def made(checkpoint: Callable[[str], tiny.Made]) -> tiny.Made:
    return checkpoint("llama")


def defense(folder: Path, name: str, *lines: str) -> dict[str, str]:
    """A defense whose `__call__` is these lines."""
    (folder / f"{name}.py").write_text(HEAD + "".join(f"        {line}\n" for line in lines))
    return {"method": f"./{name}.py", "word": str(folder / "calm")}


def subjects_of(folder: Path, made: tiny.Made, *subjects: dict[str, Any]) -> Path:
    """A recipe of the undefended twin and of these."""
    twin = {"name": "twin", "model": str(made.aligned), "base": str(made.base)}
    own = audits.attack(folder, "own", "at(Cost(steps=1))")
    more = [{"twin": "twin"} | subject for subject in subjects]
    return audits.write(folder, made, [{"name": "own", "method": own}], subjects=[twin, *more])


def run(path: Path, out: Path, most: int, said: list[str] | None = None) -> dict[str, Made]:
    chosen = recipe.load(path)
    hand = Corpus.load(Path(chosen.corpus or "")).hand("defender")
    tell = (said if said is not None else []).append
    return hardened.subjects(chosen, Run(disk.private(out)), hand, most, Board(out, most, tell, tell))


def test_weights_do_not_depend_on_how_many_run(tmp_path: Path, made: tiny.Made) -> None:
    """Later subjects start from the weights and the settings of earlier ones."""
    subjects = [
        {"name": "tar", "harden": TAR | {"families": [FAMILY]}},
        {"name": "lox", "harden": LOX},
        {"name": "lox-on-tar", "on": "tar", "harden": LOX},
        {"name": "random", "like": "lox-on-tar", "control": True, "harden": {"method": "lox", "part": "random"}},
    ]
    path, said = subjects_of(tmp_path, made, *subjects), []
    one, two = run(path, tmp_path / "one", 1), run(path, tmp_path / "two", 2, said)
    assert [*one] == [*two] and {*one} == {"tar", "lox", "lox-on-tar", "random"}
    for name in one:
        files = [found[name].folder / "model.safetensors" for found in (one, two)]
        assert files[0].read_bytes() == files[1].read_bytes(), name
        assert one[name]._replace(folder=Path()) == two[name]._replace(folder=Path()), name
    assert one["random"].defense["rank"] == 2
    tar, twin = tiny.weights(one["tar"].folder), tiny.weights(made.aligned)
    moved = {name: tiny.weights(one[name].folder) for name in ("lox", "lox-on-tar")}
    matrix = "model.layers.0.mlp.up_proj.weight"
    assert not tar[matrix].equal(twin[matrix]) and not moved["lox"][matrix].equal(moved["lox-on-tar"][matrix])
    cost = one["tar"].cost
    rehearsed, looks, kept = 2 * 4, 2 * 4, 4  # a look for refusals and one for what is known
    assert cost.examples == 3 * (rehearsed + looks + kept) and cost.tokens > cost.examples and cost.seconds == 0
    assert (one["lox"].cost.examples, one["lox"].cost.flops) == (0, 0)
    assert any(line.startswith("tar: step 3") for line in said) and "hardening lox-on-tar with lox" in said
    before = {name: (found.folder / "model.safetensors").stat().st_mtime_ns for name, found in two.items()}
    again = run(path, tmp_path / "two", 2)
    assert before == {name: (found.folder / "model.safetensors").stat().st_mtime_ns for name, found in again.items()}


def test_a_problem_ends_the_audit_and_what_is_made_stays(tmp_path: Path, made: tiny.Made) -> None:
    bad = defense(tmp_path, "bad", "if not Path(self.word).exists(): raise Problem('bad: not today; wait')")
    path = subjects_of(tmp_path, made, {"name": "lox", "harden": LOX}, {"name": "bad", "harden": bad})
    out, chosen = tmp_path / "run", recipe.load(path)
    with pytest.raises(Problem, match=r"^bad: not today; wait$"):
        auditing.run(chosen, out, audits.QUIET, 1)
    weights = out / "subjects/lox/model.safetensors"
    before = weights.stat().st_mtime_ns
    (tmp_path / "calm").touch()
    done = auditing.run(chosen, out, audits.QUIET, 1)
    assert weights.stat().st_mtime_ns == before and len(done.cells()) == 3
    told = done.read("run.json")["subjects"]
    assert told[0]["hardening"] is None and told[1]["hardening"]["seconds"] == 0
    seconds = json.loads((out / "subjects/lox.timing.json").read_text())["seconds"]
    timed = done.manifest().subjects[1].hardening
    assert timed and timed.seconds == seconds > 0


def test_where_nothing_was_made_nothing_stays(tmp_path: Path, made: tiny.Made) -> None:
    bad = defense(tmp_path, "bad", "raise ValueError('[/red] no')")
    with pytest.raises(Problem, match=r"subject 'bad': hardening failed \(ValueError: \[/red\] no\)"):
        auditing.run(
            recipe.load(subjects_of(tmp_path, made, {"name": "bad", "harden": bad})), tmp_path / "run", audits.QUIET, 1
        )
    assert not (tmp_path / "run").exists()


def test_one_that_dies_is_tried_once_more(tmp_path: Path, made: tiny.Made) -> None:
    lines = [
        "if not Path(self.word).exists():",
        "    Path(self.word).touch()",
        "    os.kill(os.getpid(), signal.SIGKILL)",
    ]
    path, said = subjects_of(tmp_path, made, {"name": "shy", "harden": defense(tmp_path, "shy", *lines)}), []
    assert {*run(path, tmp_path / "run", 2, said)} == {"shy"}
    assert any("code -9" in line and line.endswith("it is tried once more") for line in said)
    path = subjects_of(tmp_path, made, {"name": "shy", "harden": defense(tmp_path, "shy", lines[2].strip())})
    with pytest.raises(Problem, match="subject 'shy': hardening died, its process ended with code -9"):
        run(path, tmp_path / "other", 2)
    assert not list((tmp_path / "other").glob("subjects/*.json"))


class TestCommand:
    """`holdfast harden`, stopped in the middle."""

    WORDS: tuple[object, ...] = (
        *("harden", "tar", "--steps", 4, "--inner-steps", 2, "--stride", 2, "--batch", 4, "--looked", 4, "--varied", 4),
        *("--warmup", 0, "--learning-rate", 1e-3),
    )

    def words(self, made: tiny.Made, corpus: Path, out: Path) -> list[str]:
        return [*map(str, self.WORDS), "--model", str(made.aligned), "--corpus", str(corpus), "--out", str(out)]

    @pytest.mark.parametrize("saved", [True, False])
    def test_it_goes_on_as_if_it_had_not_been(
        self,
        tmp_path: Path,
        made: tiny.Made,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        saved: bool,
    ) -> None:
        tiny.corpus().save(tmp_path / "corpus.jsonl")
        whole, resumed = (self.words(made, tmp_path / "corpus.jsonl", tmp_path / name) for name in ("whole", "resumed"))
        assert cli.main(whole) == 0
        monkeypatch.setattr(hardening, "SAVED_EVERY", 0.0 if saved else 1e9)
        advance, left = hardening.Walk._advance, 2

        def stopped(walk: hardening.Walk) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            advance(walk)

        with monkeypatch.context() as patch:
            patch.setattr(hardening.Walk, "_advance", stopped)
            assert cli.main(resumed) == 130
        says = "goes on from where it was last saved" if saved else "begins anew: nothing was saved yet"
        assert capsys.readouterr().err.splitlines()[-1] == f"holdfast: stopped; the same command {says}"
        assert [path.name for path in tmp_path.glob(".*")] == [".resumed.work"] * saved
        if saved:
            assert set().union(*tiny.modes(tmp_path / ".resumed.work").values()) == {0o700, 0o600}
        assert cli.main(resumed) == 0
        told = capsys.readouterr().out
        assert ("resumed 2" in told) == saved and "hardening took" in told
        assert not list(tmp_path.glob(".*"))
        files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "resumed")]
        assert files[0] == files[1]

    def test_a_folder_that_is_taken_is_refused_before_the_work(
        self, tmp_path: Path, made: tiny.Made, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(hardening.Walk, "steps", pytest.fail)
        tiny.corpus().save(tmp_path / "corpus.jsonl")
        assert cli.main(self.words(made, tmp_path / "corpus.jsonl", tmp_path)) == 2
        assert "already there and not empty" in capsys.readouterr().err
