"""The command line: every bad input ends in one message that names the thing and the remedy, and leaves nothing behind."""

import copy
import errno
import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import audits
import tiny
from holdfast import catalogue, cli, disk, method, speech, tier
from holdfast.corpus import Corpus, Row
from holdfast.recipe import AttackRecipe
from holdfast.record import FAMILIES
from holdfast.run import Run
from test_prose import make_data

OWN = "at(Cost(steps=1))"
NUMBERS = ["--rank", "2", "--strength", "0.5"]
MATRIX = "model.layers.0.mlp.up_proj.weight"


class Told(NamedTuple):
    """What a command answered."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def made(checkpoint: Callable[[str], tiny.Made]) -> tiny.Made:
    return checkpoint("llama")


@pytest.fixture
def tell(capsys: pytest.CaptureFixture[str]) -> Callable[..., Told]:
    def command(*words: object) -> Told:
        capsys.readouterr()
        try:
            code = cli.main([str(word) for word in words])
        except SystemExit as end:  # of a wrong flag, and of --help
            code = end.code
        return Told(code, *capsys.readouterr())

    return command


@pytest.fixture
def refused(tell: Callable[..., Told]) -> Callable[..., str]:
    def command(*words: object) -> str:
        """The message of a command that must end with code 2 and one line."""
        told = tell(*words)
        assert told.code == 2, told
        assert told.err.startswith("holdfast: ") and told.err.count("\n") == 1, told.err
        assert "Traceback" not in told.err and all(c.isprintable() for c in told.err[:-1])
        return told.err

    return command


def small(folder: Path, made: tiny.Made, *lines: str, **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    method = audits.attack(folder, "own", *(lines or [OWN]))
    return audits.write(folder, made, [{"name": "own", "method": method}], **changes)


def python(*lines: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True)


def spoiled(made: tiny.Made, target: Path, how: str) -> Path:
    """A copy of the aligned checkpoint that nobody should be able to use."""
    if how in ("nan", "inf"):
        return tiny.changed(made.aligned, target, lambda tensors: tensors[MATRIX][0, :1].fill_(float(how)))
    if how == "template":
        shutil.copytree(made.aligned, target)
        (target / "chat_template.jinja").unlink()
        return target
    if how == "code":
        return tiny.reconfigured(made.aligned, target, auto_map={"AutoModel": "evil.Evil"})
    shutil.copytree(made.aligned, target)
    weights = target / "model.safetensors"
    if how == "half":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "pickled":
        torch.save({"a": torch.zeros(1)}, target / "pytorch_model.bin")
        weights.unlink()
    elif how == "config":
        (target / "config.json").write_text("{")
    elif how == "shard":
        weights.rename(target / "model-00001-of-00002.safetensors")
        index = '{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}'
        (target / "model.safetensors.index.json").write_text(index)
    elif how == "missing":
        shutil.rmtree(target)
    elif how == "empty":
        shutil.rmtree(target)
        target.mkdir()
    return target


SPOILED = {
    "missing": "no such folder; give the folder of a Hugging Face checkpoint",
    "empty": "config.json: missing",
    "config": "config.json: not valid JSON",
    "half": "model.safetensors: cannot be read",
    "shard": "named in the index but missing; the download is not complete",
    "pickled": "weights are pickled (pytorch_model.bin)",
    "code": "auto_map",
    "nan": "holds NaN or infinite weights",
    "inf": "holds NaN or infinite weights",
    "template": "its tokenizer has no chat template; add one, or ask for --template plain",
}


class TestCheckpoints:
    @pytest.mark.parametrize("how", SPOILED)
    def test_audit(self, tmp_path: Path, made: tiny.Made, refused: Callable[..., str], how: str) -> None:
        bad = spoiled(made, tmp_path / "bad", how)
        path = small(tmp_path / "in", made, subjects=[{"name": "twin", "model": str(bad)}])
        message = refused("audit", path, "--out", tmp_path / "runs/out")
        assert SPOILED[how] in message and str(bad) in message
        assert not (tmp_path / "runs").exists()

    @pytest.mark.parametrize("how", [how for how in SPOILED if how not in ("template", "code")])
    @pytest.mark.parametrize("place", ["--model", "--base"])
    def test_harden(self, tmp_path: Path, made: tiny.Made, refused: Callable[..., str], how: str, place: str) -> None:
        bad = spoiled(made, tmp_path / "bad", how)
        both = {"--model": made.aligned, "--base": made.base} | {place: bad}
        message = refused("harden", "lox", *sum(both.items(), ()), "--out", tmp_path / "out", *NUMBERS)
        assert str(bad) in message
        assert [path.name for path in tmp_path.iterdir() if path != bad] == []

    def test_other_shapes_and_tokenizers(self, tmp_path: Path, made: tiny.Made, refused: Callable[..., str]) -> None:
        narrow = tiny.changed(made.base, tmp_path / "narrow", lambda t: t.update({MATRIX: t[MATRIX][:-1].clone()}))
        fewer = tiny.changed(made.base, tmp_path / "fewer", lambda t: t.pop(MATRIX))
        named = shutil.copytree(made.base, tmp_path / "named")
        text = (named / "tokenizer.json").read_text()
        (named / "tokenizer.json").write_text(text.replace('"forbidden"', '"allowed"'))
        for base, says in (
            (narrow, f"tensor '{MATRIX}' is [48, 32] but [47, 32]"),
            (named, "its tokenizer gives"),
            (fewer, f"{fewer}: lacks tensor '{MATRIX}' that the other has"),
        ):
            out = tmp_path / "out"
            assert says in refused("harden", "lox", "--model", made.aligned, "--base", base, "--out", out, *NUMBERS)
            path = small(
                tmp_path / "in",
                made,
                subjects=[
                    {"name": "twin", "model": str(made.aligned), "base": str(base)},
                    {"name": "lox", "twin": "twin", "harden": {"method": "lox", "rank": 2, "strength": 0.5}},
                ],
            )
            assert says in refused("audit", path, "--out", out)
            assert not out.exists() and not list(tmp_path.glob(".*"))

    def test_the_plain_template_does_without(self, tmp_path: Path, made: tiny.Made, tell: Callable[..., Told]) -> None:
        bare = spoiled(made, tmp_path / "bare", "template")
        pair = {"model": str(bare), "base": str(made.base)}
        lox = {"name": "lox", "twin": "twin", "harden": {"method": "lox", "rank": 2, "strength": 0.5}}
        path = small(tmp_path / "in", made, template="plain", subjects=[{"name": "twin", **pair}, lox])
        told = tell("audit", path, "--out", tmp_path / "out", "--processes", 2)
        assert told.code == 0, told.err
        found = [cell.status for cell in Run(tmp_path / "out").cells()]
        assert len(found) == 2 and set(found) <= {"done", "dead"}  # it was never taught this template
        places = ["--model", bare, "--base", made.base, "--out", tmp_path / "hard", "--template", "plain"]
        corpus = ["--corpus", tmp_path / "in/corpus.jsonl", "--utility", "agreement", "--utility-loss", 1, "--rank", 2]
        told = tell("harden", "lox", *places, *corpus, "--over-refusal-rise", 1)
        assert told.code == 0, told.err
        assert "hardened checkpoint:" in told.out and (tmp_path / "hard/model.safetensors").is_file()


class TestCorpora:
    @pytest.mark.parametrize(
        ("how", "says"),
        [
            ("missing", "no file 'corpus.jsonl'"),
            ("empty", "holds no prompt"),
            ("two hands", "one prompt is in two hands"),
            ("cut", "line 3"),
            ("judge", "the judge's hand holds no restricted prompt (test)"),
            ("answers", "none of the judge's benign prompts has an answer"),
            ("binary", "cannot be read as text"),
        ],
    )
    def test_audit(self, tmp_path: Path, made: tiny.Made, refused: Callable[..., str], how: str, says: str) -> None:
        path = small(tmp_path / "in", made)
        file = tmp_path / "in/corpus.jsonl"
        rows = tiny.rows()
        if how == "missing":
            file.unlink()
        elif how == "empty":
            file.write_text("\n")
        elif how == "two hands":
            file.write_text(
                file.read_text() + rows[0].model_copy(update={"id": "x", "hand": "judge"}).model_dump_json()
            )
        elif how == "cut":
            file.write_text("\n".join(file.read_text().splitlines()[:3])[:-9])
        elif how == "binary":
            file.write_bytes(b"\xff\xfe\xfa")
        else:
            Corpus([row for row in map(self._lacking(how), rows) if row]).save(file)
        message = refused("audit", path, "--out", tmp_path / "out")
        assert says in message and ("corpus" in message)
        assert not (tmp_path / "out").exists()

    @staticmethod
    def _lacking(how: str) -> Callable[[Row], Row | None]:
        if how == "judge":
            return lambda row: None if (row.hand, row.kind) == ("judge", "restricted") else row
        return lambda row: row.model_copy(update={"answer": None}) if row.hand == "judge" else row


class TestPlaces:
    @pytest.mark.parametrize("where", ["file", "file/below", "x" * 300])
    def test_unwritable(self, tmp_path: Path, made: tiny.Made, refused: Callable[..., str], where: str) -> None:
        (tmp_path / "file").touch()
        path = small(tmp_path / "in", made)
        for words in (
            ("audit", path),
            ("harden", "lox", "--model", made.aligned, "--base", made.base, *NUMBERS),
            ("organism", "text"),
        ):
            message = refused(*words, "--out", tmp_path / where)
            assert "choose another" in message and where[:4] in message
        assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "in"]

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_no_permission(self, tmp_path: Path, made: tiny.Made, refused: Callable[..., str]) -> None:
        locked = tmp_path / "locked"
        locked.mkdir(mode=0o500)
        assert "no permission" in refused("audit", small(tmp_path / "in", made), "--out", locked / "out")

    def test_full_disk_at_any_file(
        self, tmp_path: Path, made: tiny.Made, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = small(tmp_path / "in", made)
        left = 0

        def full(handle: int) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(disk.os, "fsync", full)
        for allowed in range(2):
            left = allowed
            assert "the disk is full; free some space" in refused("audit", path, "--out", tmp_path / "out")
            assert not (tmp_path / "out").exists()

    def test_full_disk_for_real(self, tmp_path: Path, made: tiny.Made, refused: Callable[..., str]) -> None:
        lox = {"name": "lox", "twin": "twin", "harden": {"method": "lox", "rank": 2, "strength": 0.5}}
        twin = {"name": "twin", "model": str(made.aligned), "base": str(made.base)}
        path = small(tmp_path / "in", made, subjects=[twin, lox])
        for pages, reached in ((6, "recipe.json"), (20, "subjects"), (500, "cells")):
            with audits.mounted(tmp_path / "disk", pages) as place:
                assert "the disk is full; free some space" in refused("audit", path, "--out", place / "out"), reached
                there = sorted(file.name for file in place.iterdir())
                assert there == (["out"] if reached == "cells" else [])
                assert not list(place.rglob(".*.*"))
                if reached == "cells":
                    assert [cell.status for cell in Run(place / "out").cells()] == ["done", "done"]

    def test_a_record_that_cannot_be_written_stops_the_audit(
        self, tmp_path: Path, made: tiny.Made, refused: Callable[..., str]
    ) -> None:
        """The disk fills while the cells run: that is nobody's failure, and no cell says so."""
        fill = "open(Path(self.word) / 'filler', 'wb').write(bytes(10**7))"
        with audits.mounted(tmp_path / "disk", 60) as place:
            method = audits.attack(tmp_path, "own", OWN, "try:", f"    {fill}", "except OSError: pass")
            path = audits.write(tmp_path, made, [{"name": "own", "method": method, "word": str(place)}])
            assert "the record of cell twin.own.0 could not be written" in refused(
                "audit", path, "--out", place / "out"
            )
            assert not list((place / "out/cells").glob("*.own.0.json"))
            (place / "filler").unlink()

    def test_out_that_is_not_empty(self, tmp_path: Path, made: tiny.Made, refused: Callable[..., str]) -> None:
        words = ["harden", "lox", "--model", made.aligned, "--base", made.base, *NUMBERS, "--out", made.aligned]
        assert "already there and not empty" in refused(*words)
        assert "not a run (no recipe.json in it)" in refused("report", tmp_path)


class TestWords:
    @pytest.mark.parametrize(
        ("words", "says"),
        [
            (["adit"], "adit: no such command; did you mean 'audit'?"),
            (["qqq"], "qqq: no such command; there are demo, organism"),
            (["[/]"], "[/]: no such command"),
            (["\x1b[2J\n"], "no such command"),
            (["harden", "loxx"], "did you mean 'lox'?"),
            (["attacks", "ppo"], "ppo: no such method in attacks; there are abliterate, abliterate_search, contrast"),
            (["harden", "[/bold].py"], "[/bold].py: no such file"),
            (["organism", "txt"], "did you mean 'text'?"),
            (["audit", "none.toml"], "none.toml: no such recipe; give the path of a TOML file"),
            (["audit", "[/red].toml"], "[/red].toml: no such recipe"),
            (["report", "nowhere"], "nowhere: not a run"),
            (["harden", "lox", "--model", "a", "--out", "b", "--strength", "-1"], "negative strength would remove the"),
            (["harden", "lox", "--model", "a", "--out", "b", "--strength=-1"], "negative strength would remove the"),
            (["harden", "lox", "--model", "a", "--out", "b", "--rank", "0"], "rank"),
            (["harden", "lox", "--model", "./a", "--out", "b"], "./a: no such folder"),
            (["organism", "text", "--out", "b", "--layers", "0"], "layers: Input should be greater than 1"),
        ],
    )
    def test_one_message(
        self, refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list, says: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert says in refused(*words)
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        "words",
        [
            ["audit"],
            ["audit", "r.toml", "--procesess", "1"],
            ["audit", "r.toml", "--processes", "[/]"],
            ["harden", "lox"],
            ["harden", "lox", "--model", "a", "--out", "b", "--strength", "[/bold]"],
            ["demo", "[/]"],
        ],
    )
    def test_flags_that_do_not_fit(self, tell: Callable[..., Told], words: list[str]) -> None:
        told = tell(*words)
        assert told.code == 2
        assert "Traceback" not in told.err and ("--help" in told.err or "holdfast" in told.err)

    def test_processes_and_recipe_keys(self, tmp_path: Path, made: tiny.Made, refused: Callable[..., str]) -> None:
        path = small(tmp_path, made)
        for count in (0, -1):
            message = refused("audit", path, "--out", tmp_path / "out", "--processes", count)
            assert "nothing would ever run; give 1 or more" in message
        message = refused("audit", path, "--out", tmp_path / "out", "--set", "batch=1", "--set", "attacks.0.wrd=x")
        assert f"{path}, attack 'own': unknown key 'wrd'; did you mean 'word'?" in message
        assert "organism/b" in refused("audit", path, "--out", tmp_path / "out", "--set", "subjects.0.model=organism/b")
        assert not (tmp_path / "out").exists()

    def test_what_looks_like_markup_is_shown_as_it_is(
        self, tmp_path: Path, made: tiny.Made, tell: Callable[..., Told]
    ) -> None:
        path = small(tmp_path / "in [b] [red]", made, "raise ValueError('[/] [bold] \\x1b[31m \\x07')")
        told = tell("audit", path, "--out", tmp_path / "[bold] [u]")
        assert told.code == 1, told.err  # every cell failed
        assert f"page: {tmp_path}/[bold] [u]/report.html" in told.out
        assert "FAILED, ValueError: [/] [bold]" in told.out
        assert "\x1b" not in told.out and "\x07" not in told.out


class TestHelp:
    def test_overview(self, tell: Callable[..., Told], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COLUMNS", "80")
        for words in ([], ["--help"], ["-h"]):
            told = tell(*words)
            assert told.code == 0
            for name in (*cli.COMMANDS, "lox", "finetune", "refusal", "text"):
                assert name in told.out
            assert max(map(len, told.out.splitlines())) <= 80
        assert tell("--version").out.startswith("0.")

    @pytest.mark.parametrize(
        ("words", "tells"),
        [
            (["audit", "--help"], ["--set", "--keep-answers", "--processes", "learning_rate=5e-5", "default: smoke"]),
            (["harden", "lox", "--help"], ["--strength", "--base", "--template"]),
            (["harden", "--help"], ["lox", "METHOD"]),
            (["organism", "text", "--help"], ["--out", "--layers"]),
            (["report", "--help"], ["--show-answers"]),
            (["demo", "--help"], ["--out"]),
        ],
    )
    def test_of_commands(self, tell: Callable[..., Told], words: list[str], tells: list[str]) -> None:
        told = tell(*words)
        assert told.code == 0
        for one in tells:
            assert one in told.out
        assert "{None" not in told.out and "--no-keep" not in told.out

    def test_a_method_of_ones_own(self, tmp_path: Path, tell: Callable[..., Told], refused: Callable[..., str]) -> None:
        defense = audits.HEAD.replace("import Attack", "import Defense").replace("Mine(Attack)", "Mine(Defense)")
        (tmp_path / "mine.py").write_text(defense.replace("hand, at, seed", "hand, log") + "        weight *= 2\n")
        told = tell("harden", tmp_path / "mine.py", "--help")
        assert told.code == 0 and "--word" in told.out
        (tmp_path / "attack.py").write_text(audits.HEAD + "        pass\n")
        assert "attack.py: defines 0 methods for defenses" in refused("harden", tmp_path / "attack.py", "--help")

    def test_the_overview_needs_nothing_heavy(self) -> None:
        done = python(
            "import sys, holdfast.cli",
            "holdfast.cli.main(['--help'])",
            "heavy = {'torch', 'transformers', 'numpy', 'pydantic', 'rich', 'tyro'} & set(sys.modules)",
            "print(heavy, file=sys.stderr)",
            "sys.exit(len(heavy))",
        )
        assert done.returncode == 0, done.stderr

    def test_as_a_process(self) -> None:
        """One that is refused before torch comes; test_audit.py stops one that is at work."""
        done = python("import sys; from holdfast.cli import main; sys.exit(main(['adit [/] \\x1b']))")
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("holdfast: adit [/]  : no such command; ") and done.stderr.count("\n") == 1


class TestAttacks:
    def test_the_list_holds_every_attack(
        self, tell: Callable[..., Told], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        entries = json.loads(tell("attacks", "--json").out)
        assert [one["name"] for one in entries] == method.names("attacks")
        for one in entries:
            assert one["family"] in FAMILIES and one["axis"] and one["cost"] and one["paper"] and one["summary"]
        monkeypatch.setattr(speech.console, "_width", 80)
        told = tell("attacks")
        assert told.code == 0 and max(map(len, told.out.splitlines())) <= 80
        shown = {line.split()[0] for line in told.out.splitlines() if line and not line.startswith(" ")}
        assert {one["name"] for one in entries} <= shown
        words = " ".join(told.out.split())
        assert "weights only" in words and "base weights" in words and "axis steps: a clock (cost to break)" in words
        assert all(f"\n  {one['summary']}\n" in told.out for one in entries)
        monkeypatch.setattr(speech.console, "_width", 150)
        wide = tell("attacks").out.splitlines()
        assert max(map(len, wide)) <= 150
        for one in entries:
            assert any(line.startswith(f"{one['name']} ") and line.endswith(one["summary"]) for line in wide)

    def test_one_explained(self, tell: Callable[..., Told]) -> None:
        told = tell("attacks", "subtract")
        words = " ".join(told.out.split())
        assert told.code == 0
        for part in (
            "Subtract the released-minus-base delta",
            "Assumes:",
            "adversary needs base weights (with these defaults)",
            "share of the delta (a severity)",
            "arXiv 2306.14870",
            "# rank = ...",
        ):
            assert part in words
        assert "Walk from the released weights" not in words  # the list said that already
        assert "shares" in words and "0.25, 0.5, 0.75, 1" in words and 'method = "subtract"' in words

    @pytest.mark.parametrize("name", method.names("attacks"))
    def test_the_example_is_an_entry_of_a_recipe(self, name: str) -> None:
        entry = tomllib.loads(catalogue.example(name))["attacks"][0]
        built = AttackRecipe.model_validate(entry).build()
        if name == "external":  # no command is no entry that could run
            assert "{model}" in built.command and "{out}" in built.command
            built = built.model_copy(update={"command": ()})
        assert built == method.make("attacks", name, "test")

    @pytest.mark.parametrize(
        ("name", "line"),
        [
            ("prune", "fractions = [0.1, 0.2, 0.3, 0.5, 0.7]"),
            ("drop_layers", "blocks = [1, 2, 4, 8]"),
            ("steer", "span = [0.4, 0.8]"),
            ("finetune", 'variant = "dialect"'),
            ("finetune", "lora_rank = 16"),
            ("merge", "density = 0.2"),
            ("merge", "with_model = ..."),
        ],
    )
    def test_what_is_not_set_is_shown_as_a_comment(self, name: str, line: str) -> None:
        lines = catalogue.example(name).splitlines()
        assert f"# {line}" in lines
        if line not in ("with_model = ...", "lora_rank = 16"):  # which the default `peft` has not
            uncommented = "\n".join(line if one == f"# {line}" else one for one in lines)
            assert AttackRecipe.model_validate(tomllib.loads(uncommented)["attacks"][0]).build()

    def test_one_of_ones_own(self, tmp_path: Path, tell: Callable[..., Told], refused: Callable[..., str]) -> None:
        audits.attack(tmp_path, "mine", OWN)
        told = tell("attacks", tmp_path / "mine.py")
        assert told.code == 0 and "word" in told.out and 'name = "mine"' in told.out
        assert json.loads(tell("attacks", "--json", tmp_path / "mine.py").out)[0]["axis"] == "steps"
        assert "did you mean 'noise'" in refused("attacks", "noize")
        assert "no such file" in refused("attacks", tmp_path / "none.py")


class TestTiers:
    @pytest.fixture
    def short(self, monkeypatch: pytest.MonkeyPatch) -> None:
        noise = {"name": "noise", "method": "noise", "scales": [0.01]}
        content = {"seeds": [0], "max_new_tokens": 4, "attacks": [noise, {"name": "subtract", "method": "subtract"}]}
        monkeypatch.setattr(tier, "read", lambda _: copy.deepcopy(content))

    def test_a_checkpoint_without_a_recipe(
        self, tmp_path: Path, made: tiny.Made, tell: Callable[..., Told], short: None
    ) -> None:
        tiny.corpus().save(tmp_path / "prompts.jsonl")
        words = ["audit", "--model", made.aligned, "--corpus", tmp_path / "prompts.jsonl", "--tier", "smoke"]
        told = tell(*words, "--twin", made.base, "--out", tmp_path / "out", "--processes", 2)
        assert told.code == 0, told.err
        assert told.out.count("not run: subtract needs base weights") == 2
        run = Run(tmp_path / "out")
        assert {(cell.subject, cell.attack) for cell in run.cells()} == {("undefended", "noise"), ("released", "noise")}
        assert run.read("run.json")["not_run"] == ["subtract needs base weights"]
        again = tell(*words, "--twin", made.base, "--out", tmp_path / "out")
        assert again.code == 0 and "2 of 2 cells are done already" in again.out

    @pytest.mark.parametrize(
        ("more", "says"),
        [
            ([], "no policy.toml or corpus.jsonl in it or beside it; give --corpus FILE"),
            (["--corpus", "none.jsonl"], "none.jsonl: no such corpus file"),
            (["--corpus", "prompts.jsonl", "--base", "./none"], "./none: no such folder"),
            (["--corpus", "prompts.jsonl", "--keep-weights"], "add --i-will-guard-broken-weights"),
            (["recipe.toml"], "recipe.toml: a recipe says itself what is audited; leave out --model"),
        ],
    )
    def test_what_cannot_be(
        self,
        tmp_path: Path,
        made: tiny.Made,
        refused: Callable[..., str],
        short: None,
        monkeypatch: pytest.MonkeyPatch,
        more: list[str],
        says: str,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        tiny.corpus().save(tmp_path / "prompts.jsonl")
        assert says in refused("audit", "--model", made.aligned, *more)
        assert [path.name for path in tmp_path.iterdir()] == ["prompts.jsonl"]

    def test_neither_recipe_nor_model(self, refused: Callable[..., str]) -> None:
        assert "gives neither a recipe nor --model" in refused("audit", "--tier", "smoke")


class TestDealing:
    def test_a_corpus_of_the_public_benchmarks(self, tmp_path: Path, tell: Callable[..., Told]) -> None:
        data = make_data(tmp_path / "data")
        told = tell("corpus", "--data", data, "--out", tmp_path / "corpus.jsonl")
        assert told.code == 0, told.err
        assert "judge: " in told.out and "restricted" in told.out
        assert "harmful answers only begin" in told.out, "what such a corpus cannot show is said"
        dealt = Corpus.load(tmp_path / "corpus.jsonl")
        assert all(dealt.hand(name).of("restricted") for name in ("defender", "attacker", "judge"))

    def test_what_is_missing_is_named(self, tmp_path: Path, refused: Callable[..., str]) -> None:
        words = ("corpus", "--data", tmp_path, "--out", tmp_path / "corpus.jsonl")
        assert "harmful_behaviors.csv: no such file; fetch AdvBench and put it there" in refused(*words)
        (tmp_path / "corpus.jsonl").touch()
        assert "already there; choose another file or delete it" in refused(*words)


def test_every_command_is_a_file_and_every_file_a_command():
    files = {path.stem for path in (Path(cli.__file__).parent / "commands").glob("*.py")} - {"__init__"}
    assert files == {*cli.COMMANDS}
