"""Audits: everything is run, nothing twice, and nothing is lost whatever kills it."""

import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console
from safetensors.torch import save_file

import audits
import tiny
from audits import TUNE
from holdfast import cli, disk, recipe, verdict
from holdfast.checks.folder import run_folder
from holdfast.dossier import Dossier
from holdfast.evidence import Evidence
from holdfast.lm import LM
from holdfast.problem import Problem
from holdfast.run import Run

LOX = {"name": "lox", "twin": "twin", "harden": {"method": "lox", "rank": 2, "strength": 0.5}}
HOLDFAST = [sys.executable, "-c", "import sys; from holdfast.cli import main; sys.exit(main())"]


@pytest.fixture(scope="module")
def made(checkpoint: Callable[[str], tiny.Made]) -> tiny.Made:
    return checkpoint("llama")


def subjects(made: tiny.Made) -> list[dict[str, Any]]:
    return [{"name": "twin", "model": str(made.aligned), "base": str(made.base)}, LOX]


def small(folder: Path, made: tiny.Made, *lines: str, **changes: Any) -> Path:
    """A recipe of one attack of one's own."""
    method = audits.attack(folder, "own", *(lines or ["at(Cost(steps=1))"]))
    return audits.write(folder, made, [{"name": "own", "method": method}], **changes)


def stamps(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (folder / "cells").glob("*.json")}


def start(path: Path, out: Path, *words: str) -> "subprocess.Popen[str]":
    """`holdfast audit` in a process group of its own."""
    command = [*HOLDFAST, "audit", str(path), "--out", str(out), "--processes", "2", *words]
    kept = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, start_new_session=True, **kept)


def until(true: Callable[[], Any]) -> None:
    """Wait for something that must come, however slow the machine is."""
    end = time.monotonic() + 240
    while not true():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory, made: tiny.Made) -> dict[str, Any]:
    """An audit in which some cells die, and the same once more when they no longer do."""
    folder = tmp_path_factory.mktemp("twice")
    moody = audits.attack(
        folder,
        "moody",
        "if not Path(self.word).exists():",
        "    if seed == 0: os.kill(os.getpid(), signal.SIGKILL)",
        "    if seed == 1: raise ValueError('[/red] not today \\x1b[2J')",
        "    if seed == 2: os._exit(0)",
        "weight *= 0.9",
        "at(Cost(steps=1))",
    )
    attacks = [
        TUNE | {"name": "tune", "seeds": [0, 1]},
        {"name": "moody", "method": moody, "seeds": [0, 1, 2], "word": str(folder / "calm")},
        {"name": "noise", "method": "noise", "scales": [0.01], "negative_control": True},
    ]
    path = audits.write(folder, made, attacks, subjects=subjects(made), seeds=[5])
    out = folder / "run"
    console = Console(record=True, width=200, file=open(os.devnull, "w"))  # noqa: SIM115
    first = audits.run_all(path, out, console)
    found = {"folder": out, "path": path, "first": first.cells(), "stamps": stamps(out), "said": console.export_text()}
    (folder / "calm").touch()
    found["second"] = audits.run_all(path, out).cells()
    return found


class TestAudit:
    def test_every_subject_under_every_attack_with_every_seed(self, twice: dict[str, Any]) -> None:
        wanted = {("tune", 0), ("tune", 1), ("moody", 0), ("moody", 1), ("moody", 2), ("noise", 5)}
        found = {(cell.subject, cell.attack, cell.seed) for cell in twice["first"]}
        assert found == {(subject, *one) for subject in ("twin", "lox") for one in wanted}

    def test_a_defense_with_nan_weights_is_dead_and_its_attack_is_never_made(
        self, tmp_path: Path, made: tiny.Made
    ) -> None:
        broken = tmp_path / "broken"
        shutil.copytree(made.aligned, broken)
        weights = tiny.weights(broken)
        weights["model.layers.1.mlp.up_proj.weight"][3, 3] = float("nan")
        save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
        own = {"name": "nan", "twin": "twin", "model": str(broken)}
        path = small(tmp_path, made, "at(Cost(steps=1))", subjects=[*subjects(made)[:1], own])
        run = audits.run_all(path, tmp_path / "out")
        found = run.cell("nan.own.0")
        assert found is not None and found.status == "dead" and [look.status for look in found.milestones] == ["dead"]
        assert {one.subject: one.verdict for one in verdict.judge(run).verdicts}["nan"] == "dead"

    def test_a_cell_that_dies_is_failed_and_harms_no_other(self, twice: dict[str, Any]) -> None:
        for cell in twice["first"]:
            assert cell.status == ("failed" if cell.attack == "moody" else "done")
        reasons = {cell.seed: cell.reason for cell in twice["first"] if cell.attack == "moody"}
        assert "code -9" in reasons[0] and "code 0" in reasons[2]
        assert reasons[1].startswith("ValueError: [/red] not today")

    def test_finished_cells_are_skipped_and_failed_ones_run_again(self, twice: dict[str, Any]) -> None:
        assert {cell.status for cell in twice["second"]} == {"done"}
        now = stamps(twice["folder"])
        for name, before in twice["stamps"].items():
            assert (now[name] == before) == (".moody." not in name)

    def test_others_words_are_shown_as_they_are_without_control_characters(self, twice: dict[str, Any]) -> None:
        assert "[/red] not today" in twice["said"]
        assert "\x1b" not in twice["said"]

    def test_all_cells_of_a_subject_start_from_the_same_weights(self, twice: dict[str, Any]) -> None:
        known = {facts["name"]: facts["hash"] for facts in twice_run(twice)["subjects"]}
        assert known["twin"] != known["lox"]
        assert all(cell.start_hash == known[cell.subject] for cell in twice["second"])

    def test_an_honest_run_is_as_planned(self, twice: dict[str, Any]) -> None:
        found = run_folder(Evidence.read(Run(twice["folder"])))
        assert {one.name for one in found} >= {
            "as planned",
            "whole paths",
            "records agree",
            "same start",
            "same budget",
        }
        assert not [one for one in found if one.passed is not True]

    def test_the_run_says_what_it_is(self, twice: dict[str, Any]) -> None:
        facts = twice_run(twice)
        assert facts["kept"].startswith("attacked weights were never written out; answers were kept as hashes")
        assert facts["corpus"]["restricted"] == facts["corpus"]["lesson"] == 12
        assert [subject["organism"] for subject in facts["subjects"]] == [None, None]
        assert facts["subjects"][1]["defense"]["strength"] == 0.5
        assert facts["attacks"][2] | {"settings": 0} == {
            "name": "noise",
            "method": "noise",
            "axis": "relative norm",
            "family": "edit",
            "found": None,
            "negative_control": True,
            "needs": [],
            "settings": 0,
            "seeds": [5],
        }

    def test_only_the_owner_may_look(self, twice: dict[str, Any]) -> None:
        for path in [twice["folder"], *twice["folder"].rglob("*")]:
            assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path
        assert not list(twice["folder"].rglob("weights"))


def twice_run(twice: dict[str, Any]) -> dict[str, Any]:
    return Run.open(twice["folder"]).read("run.json")


class TestResume:
    def test_another_recipe_in_the_folder_is_refused(
        self, twice: dict[str, Any], tmp_path: Path, made: tiny.Made
    ) -> None:
        before = stamps(twice["folder"])
        with pytest.raises(Problem, match="holds the audit of another recipe; choose another --out"):
            audits.run_all(small(tmp_path, made), twice["folder"])
        assert stamps(twice["folder"]) == before

    def test_a_folder_of_other_things_is_refused(self, tmp_path: Path, made: tiny.Made) -> None:
        with pytest.raises(Problem, match="not empty, and not an audit's folder"):
            audits.run_all(small(tmp_path, made), tmp_path)
        assert not (tmp_path / "recipe.json").exists()

    def test_what_changed_since_is_refused(self, tmp_path: Path, made: tiny.Made) -> None:
        path = small(tmp_path, tiny.Made(*(tiny.changed(one, tmp_path / one.name, lambda _: None) for one in made)))
        audits.run_all(path, tmp_path / "run")
        with pytest.raises(Problem, match="what is kept"):
            audits.run_all(path, tmp_path / "run", keep_answers=True)
        corpus = (tmp_path / "corpus.jsonl").read_text()
        (tmp_path / "corpus.jsonl").write_text(corpus + "\n")
        with pytest.raises(Problem, match="the corpus is not as it was"):
            audits.run_all(path, tmp_path / "run")
        (tmp_path / "corpus.jsonl").write_text(corpus)
        (tmp_path / "aligned/model.safetensors").write_bytes((made.base / "model.safetensors").read_bytes())
        with pytest.raises(Problem, match="a subject is not as it was"):
            audits.run_all(path, tmp_path / "run")
        assert len(stamps(tmp_path / "run")) == 2

    def test_one_at_a_time(self, tmp_path: Path, made: tiny.Made) -> None:
        out = disk.private(tmp_path / "run")
        with disk.alone(out), pytest.raises(Problem, match="another holdfast is at work here"):
            audits.run_all(small(tmp_path, made), out)

    @pytest.mark.hard
    def test_what_a_kill_left_is_cleared_away(self, tmp_path: Path, made: tiny.Made) -> None:
        path = small(tmp_path, made, subjects=subjects(made))
        out = tmp_path / "run"
        Run(out).write("recipe.json", recipe.dump(recipe.load(path)))
        (out / "subjects/.lox.a1b2c3d4").mkdir(parents=True)  # while hardening
        (out / "subjects/lox").mkdir()  # hardened, not yet noted
        (out / "subjects/lox/config.json").write_text("{}")
        (out / "cells").mkdir()
        (out / "cells/.twin.own.0.json.a1b2c3d4").touch()
        assert {cell.status for cell in audits.run_all(path, out).cells()} == {"done"}
        assert [path.name for path in out.rglob(".*")] == [".lock"]

    def test_kept_weights_and_answers_are_said(self, tmp_path: Path, made: tiny.Made) -> None:
        run = audits.run_all(small(tmp_path, made), tmp_path / "run", keep_answers=True, keep_weights=True)
        assert run.read("run.json")["kept"].startswith("attacked weights are kept; answers are kept")
        assert (tmp_path / "run/weights/twin.own.0/model.safetensors").is_file()
        assert any(row["answer"] for row in run.rows("twin.own.0"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, made: tiny.Made) -> tuple[Path, Path]:
    """A recipe, and its finished run of one cell."""
    folder = tmp_path_factory.mktemp("finished")
    path = small(folder, made)
    audits.run_all(path, folder / "run")
    return path, folder / "run"


def half(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def bent(file: Path) -> None:
    """Some bytes in the middle are others."""
    content = bytearray(file.read_bytes())
    middle = len(content) // 3
    content[middle : middle + 20] = bytes(byte ^ 255 for byte in content[middle : middle + 20])
    file.write_bytes(content)


def nested(file: Path) -> None:
    file.write_text("[" * 100_000)


def another(file: Path) -> None:
    file.write_text(file.read_text().replace('"seed": 0', '"seed": 1'))


DAMAGES: list[tuple[str, Callable[[Path], Any]]] = [
    ("json", half),
    ("json", bent),
    ("json", nested),
    ("json", another),
    ("json", lambda file: file.write_bytes(b"")),
    ("json", lambda file: file.write_text("null")),
    ("timing.json", half),
    ("timing.json", Path.unlink),
    ("timing.json", lambda file: file.write_text('{"seconds": []}')),
    ("parquet", half),
    ("parquet", bent),
    ("parquet", Path.unlink),
    ("parquet", lambda file: file.write_bytes(b"")),
]
AUDITED = (0, 3, 7, 11)
"""Damages after which an audit is resumed in the quick suite: what it does does not depend on what is wrong with a file."""


class TestDamage:
    @staticmethod
    def damaged(folder: Path, whole: Path, ending: str, damage: Callable[[Path], None]) -> Run:
        shutil.copytree(whole, folder)
        damage(folder / f"cells/twin.own.0.{ending}")
        return Run.open(folder)

    @pytest.mark.parametrize(("ending", "damage"), DAMAGES)
    def test_a_damaged_record_is_named(
        self, tmp_path: Path, finished: tuple[Path, Path], ending: str, damage: Callable[[Path], None]
    ) -> None:
        assert Run.open(finished[1]).damaged("twin.own.0") is None
        said = self.damaged(tmp_path / "run", finished[1], ending, damage).damaged("twin.own.0")
        assert (said and f"twin.own.0.{ending}" in said) or "twin.own.0.json: not a cell's record" in said

    @pytest.mark.parametrize(
        ("ending", "damage"),
        [pytest.param(*one, marks=[] if number in AUDITED else pytest.mark.hard) for number, one in enumerate(DAMAGES)],
    )
    def test_a_damaged_record_is_moved_aside_and_made_again(
        self, tmp_path: Path, finished: tuple[Path, Path], ending: str, damage: Callable[[Path], None]
    ) -> None:
        path, whole = finished
        run = self.damaged(tmp_path / "run", whole, ending, damage)
        console = Console(record=True, width=300, file=open(os.devnull, "w"))  # noqa: SIM115
        audits.run_all(path, run.folder, console)
        assert f"damaged: {run.folder}/cells/twin.own.0." in console.export_text()
        assert audits.cells(run.folder) == audits.cells(whole)
        kept = {file.name for file in (run.folder / "cells/damaged").iterdir()}
        lost = {f"twin.own.0.{ending}"} if damage == Path.unlink else set()
        assert kept == {"twin.own.0.json", "twin.own.0.parquet", "twin.own.0.timing.json"} - lost

    def test_a_report_names_it(
        self, tmp_path: Path, finished: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
    ) -> None:
        for ending in ("parquet", "json"):
            run = shutil.copytree(finished[1], tmp_path / ending)
            half(run / f"cells/twin.own.0.{ending}")
            assert cli.main(["report", str(run)]) == 2
            assert f"twin.own.0.{ending}" in capsys.readouterr().err

    def test_where_every_cell_failed_the_exit_code_says_so(
        self, tmp_path: Path, made: tiny.Made, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = small(tmp_path, made, "if not Path(self.word).exists(): raise ValueError('no')", "at(Cost(steps=1))")
        words = ["audit", str(path), "--out", str(tmp_path / "run"), "--set", f"attacks.0.word={tmp_path / 'calm'}"]
        assert cli.main(words) == 1
        assert "every cell failed: nothing was measured; twin.own.0: ValueError: no" in capsys.readouterr().out
        assert (tmp_path / "run/verdict.json").is_file() and (tmp_path / "run/report.html").is_file()
        (tmp_path / "calm").touch()
        assert cli.main(words) == 0


ORGANISM = """
import shutil
from pathlib import Path
from holdfast import disk
from holdfast.method import Organism

class Copied(Organism):
    made: str
    corpus: str

    def build(self, out, log):
        log.metrics(stage="[/] copied")
        with disk.whole(out) as aside:
            shutil.copytree(self.made, aside, dirs_exist_ok=True)
            shutil.copy(self.corpus, aside / "corpus.jsonl")
"""


class TestOrganism:
    def _recipe(self, folder: Path, made: tiny.Made, *models: str) -> Path:
        tiny.corpus().save(folder / "prompts.jsonl")
        (folder / "copied.py").write_text(ORGANISM)
        organism = {"method": "copied.py", "made": str(made.base.parent), "corpus": str(folder / "prompts.jsonl")}
        named = [{"name": f"model-{number}", "model": model} for number, model in enumerate(models)]
        return small(folder, made, organism=organism, corpus=None, subjects=named)

    def _audit(self, folder: Path, path: Path, *words: str) -> int:
        return cli.main(["audit", str(path), "--out", str(folder / "run"), "--processes", "2", *words])

    def test_is_built_in_the_run_and_said(self, tmp_path: Path, made: tiny.Made) -> None:
        path = self._recipe(tmp_path, made, "organism/aligned", str(made.aligned))
        run = audits.run_all(path, tmp_path / "run")
        facts = run.read("run.json")
        assert [subject["organism"] for subject in facts["subjects"]] == [str(tmp_path / "copied.py"), None]
        assert facts["subjects"][0]["folder"] == str(tmp_path / "run/organism/aligned")
        assert facts["subjects"][0]["hash"] == facts["subjects"][1]["hash"]
        assert facts["corpus"]["file"] == str(tmp_path / "run/organism/corpus.jsonl")
        assert {cell.status for cell in run.cells()} == {"done"}

    def test_a_part_that_it_has_not(self, tmp_path: Path, made: tiny.Made, capsys: pytest.CaptureFixture[str]) -> None:
        assert self._audit(tmp_path, self._recipe(tmp_path, made, "organism/algned")) == 2
        assert "the organism has no checkpoint 'algned'; did you mean 'aligned'?" in capsys.readouterr().err
        assert not (tmp_path / "run").exists()

    def test_only_its_own_weights_are_kept_without_saying(
        self, tmp_path: Path, made: tiny.Made, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = self._recipe(tmp_path, made, "organism/aligned", str(made.aligned))
        assert self._audit(tmp_path, path, "--keep-weights") == 2
        assert "add --i-will-guard-broken-weights" in capsys.readouterr().err
        assert not (tmp_path / "run").exists()
        assert self._audit(tmp_path, path, "--keep-weights", "--i-will-guard-broken-weights") == 0
        assert len(list((tmp_path / "run/weights").iterdir())) == 2
        shutil.rmtree(tmp_path / "run")
        assert self._audit(tmp_path, self._recipe(tmp_path, made, "organism/aligned"), "--keep-weights") == 0


def test_a_checkpoint_is_loaded_once_before_the_cells(
    tmp_path: Path, made: tiny.Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twin, and a subject that is the very same checkpoint; the cells load theirs in their own processes."""
    loads, load = [], LM.load
    monkeypatch.setattr(LM, "load", lambda name, **how: loads.append(str(name)) or load(name, **how))
    same = {"name": "same", "model": str(made.aligned), "twin": "twin"}
    run = audits.run_all(small(tmp_path, made, subjects=[subjects(made)[0], same]), tmp_path / "run")
    assert loads == [str(made.aligned)]
    facts = run.read("run.json")["subjects"]
    assert facts[0]["hash"] == facts[1]["hash"] == LM.load(made.aligned).hash()


class TestStopped:
    @pytest.mark.hard
    def test_control_c_stops_cleanly(self, tmp_path: Path, made: tiny.Made) -> None:
        path = small(tmp_path, made, "if seed: time.sleep(900)", "at(Cost(steps=1))", seeds=[0, 1])
        process = start(path, tmp_path / "run")
        try:
            until(lambda: (tmp_path / "run/cells/twin.own.0.json").exists() or process.poll() is not None)
            workers = psutil.Process(process.pid).children(recursive=True)
            os.killpg(process.pid, signal.SIGINT)
            _, said = process.communicate()
        finally:
            process.kill()
        assert process.returncode == 130
        assert said.strip() == "holdfast: stopped; finished cells are kept, the same command goes on from there"
        assert sorted(stamps(tmp_path / "run")) == ["twin.own.0.json", "twin.own.0.timing.json"]
        until(lambda: not [worker for worker in workers if worker.is_running()])

    @pytest.mark.hard
    def test_workers_end_with_a_killed_parent(self, tmp_path: Path, made: tiny.Made) -> None:
        path = small(tmp_path, made, "(Path(__file__).parent / 'begun').touch(); time.sleep(900)")
        process = start(path, tmp_path / "run")
        until((tmp_path / "begun").exists)
        workers = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.communicate()
        assert len(workers) >= 2
        until(lambda: not [worker for worker in workers if worker.is_running()])
        assert not list((tmp_path / "run/cells").glob("*.json"))

    @pytest.mark.hard
    def test_fifty_kills_at_random_moments_lose_nothing(self, tmp_path: Path, made: tiny.Made) -> None:
        """Audits are killed and resumed until fifty kills are spent: none is lost, none run twice, all are as undisturbed."""
        attacks = [TUNE | {"name": "tune"}, TUNE | {"name": "lora", "lora_rank": 2, "trainer": "trl"}]
        path = audits.write(tmp_path, made, attacks, subjects=subjects(made), seeds=[*range(8)])
        whole, verdict = self._finished(path, tmp_path / "whole")
        assert len(whole) == 64
        chance, kills, number = random.Random(0), 0, 0
        while kills < 50:
            out, number, kept = tmp_path / f"run-{number}", number + 1, {}
            while kills < 50 and len(kept) < 32:
                said = self._killed(path, out, chance, len(kept))
                kills += 1
                assert "Traceback" not in said, said
                found = {name: content for name, content in audits.cells(out).items() if name.endswith("json")}
                assert found.items() <= whole.items()
                now = {name: stamp for name, stamp in stamps(out).items() if name in found}
                assert kept.items() <= now.items()  # the very files: none was written again
                print(f"audit {number}, kill {kills}: {len(kept)} cells, then {len(now)}", flush=True)
                kept = now
            assert self._finished(path, out) == (whole, verdict)
            assert kept.items() <= stamps(out).items()
            assert not list(out.rglob(".*.*"))

    @pytest.mark.hard
    def test_a_disk_that_is_full_again_and_again_loses_nothing(self, tmp_path: Path, made: tiny.Made) -> None:
        path = audits.write(tmp_path, made, [TUNE | {"name": "tune"}], subjects=subjects(made), seeds=[*range(4)])
        whole, verdict = self._finished(path, tmp_path / "whole")
        chance, kept, pages, fills = random.Random(0), {}, 30, 0
        with audits.mounted(tmp_path / "disk", pages) as place:
            while True:
                process = start(path, place / "run")
                _, said = process.communicate()
                found = audits.cells(place / "run")
                print(f"{pages} pages: exit {process.returncode}, {len(found)} of {len(whole)} files", flush=True)
                assert kept.items() <= stamps(place / "run").items()
                if process.returncode == 0:
                    break
                fills += 1
                assert process.returncode == 2 and "Traceback" not in said
                assert said.startswith("holdfast: ") and said.count("\n") == 1 and "the disk is full" in said
                assert {name: one for name, one in found.items() if name.endswith("json")}.items() <= whole.items()
                kept = {name: one for name, one in stamps(place / "run").items() if name in found}
                pages = pages + chance.randint(5, 30) if found != whole else 10_000  # the page is large
                remount = ["mount", "-o", f"remount,size={pages * 4}k", str(place)]
                subprocess.run(remount, check=True)
            assert fills >= 3
            assert audits.cells(place / "run") == whole
            dossier = Dossier.model_validate_json((place / "run/verdict.json").read_text())
            assert audits.timeless(dossier).replace(str(place / "run"), "") == verdict

    def _finished(self, path: Path, out: Path) -> tuple[dict[str, bytes], str]:
        """Cells and verdict of an audit that nobody disturbs."""
        process = start(path, out)
        assert process.communicate() and process.returncode == 0
        dossier = Dossier.model_validate_json((out / "verdict.json").read_text())
        return audits.cells(out), audits.timeless(dossier).replace(str(out), "")

    def _killed(self, path: Path, out: Path, chance: random.Random, cells: int) -> str:
        """Start the audit and kill it, or it and all its processes: at any moment, often just after another cell."""
        process = start(path, out)
        if chance.random() < 0.8:
            until(lambda: len(list((out / "cells").glob("*.parquet"))) > cells + 1 or process.poll() is not None)
            time.sleep(chance.uniform(0, 0.5))
        else:
            time.sleep(chance.uniform(0, 8))
        os.killpg(process.pid, signal.SIGKILL) if chance.random() < 0.7 else process.kill()
        return process.communicate()[1]
