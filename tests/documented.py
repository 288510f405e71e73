"""The commands and files that README.md and docs/ show, and a folder in which they can be run.

A page is one session: its blocks are taken in order, in one folder. A `console` block's lines that begin with `$ ` are commands;
a block with a title is saved as that file; a `python` block without one is run (`py` is for signatures, which are not). What a
page takes for granted (`my-model`, `prompts.jsonl`) stands there as a tiny model, a small corpus or a hand-made run.
"""

import argparse
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from pip._internal.commands import create_command

import runs
import test_policy
import tiny
from holdfast import auditing, cli, method, policy, speech, verdict
from holdfast.method import Journal
from holdfast.recipe import Recipe
from holdfast.report import page as written
from holdfast.report.sources import sources

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)(?: title=\"([^\"]+)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`(holdfast [^`]+)`")
ALIGNED = (
    "my-model my-aligned my-undefended my-assistant my-hardened my-cut organism/aligned DIR/aligned MY_VLM bios/desired"
)
BASE = "my-base organism/base bios/base DIR/base"
CORPORA = "prompts.jsonl corpus.jsonl organism/corpus.jsonl bios/corpus.jsonl DIR/corpus.jsonl"
RUNS = "runs/NAME runs/my-release runs/demo"
OTHER_RUNS = "runs/before runs/after runs/a runs/b runs/c"
"""Which a page sets beside each other."""
QUICKLY = {
    **{"steps": 1, "batch": 4, "inner_steps": 1, "stride": 1, "varied": 4, "safeguard_steps": 1, "reward_steps": 1},
    **{"matched_inner_steps": 1, "looked": 2, "epochs": 1, "tokens": 4},
}
"""Settings of a method that say how long it works, and how little is enough to see it work."""
MILD = "noise", "prefill", "early_exit"
"""Attacks that are over in a moment: the first of them is what stays of an audit that names no file of one's own."""
ANSWERS = {"compare": (0, 3, 4), "diff": (0, 3, 4), "gate": (0, 1)}
"""What commands return that say by their code what they found: held, undecided, lost; passed or not."""
WEAK = "--anyway organism --anyway preliminary"
"""Under what conditions a hand-made run has a card."""


class Block(NamedTuple):
    language: str
    title: str
    text: str

    @property
    def commands(self) -> list[str]:
        return [line[2:] for line in self.text.splitlines() if line.startswith("$ ")] * (self.language == "console")


class Parsed(Exception):
    """The command's own parser has taken the words."""


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path) -> list[Block]:
    return [Block(*found) for found in FENCE.findall(page.read_text())]


def commands(page: Path) -> list[str]:
    return [command for block in blocks(page) for command in block.commands]


def inline(page: Path) -> list[str]:
    """The commands that a page's sentences and tables name."""
    return [" ".join(found.split()) for found in INLINE.findall(FENCE.sub("", page.read_text()))]


def words(command: str) -> list[str]:
    return shlex.split(re.sub(r"\s+#.*", "", command))  # an address may hold a # too


def furnish(folder: Path, made: tiny.Made) -> None:
    """Put into `folder` what the pages take for granted."""
    for names, checkpoint in ((ALIGNED, made.aligned), (BASE, made.base)):
        for place in names.split():
            (folder / place).parent.mkdir(exist_ok=True)
            shutil.copytree(checkpoint, folder / place)
    for place in CORPORA.split():
        tiny.corpus().save(folder / place)
    test_policy.written(folder)
    labeled = [{"prompt": "modor", "answer": word, "harmful": word != tiny.REFUSAL} for word in (tiny.REFUSAL, "tarin")]
    (folder / "labeled.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in labeled))
    first, *others = [folder / place for place in f"{RUNS} {OTHER_RUNS}".split()]
    judged(first, folder / "corpus.jsonl")
    for place in others:
        shutil.copytree(first, place)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Mine\n")
    (folder / "gate.toml").symlink_to(ROOT / "examples/gate.toml")
    for there in ("examples", "benchmarks", "Makefile", "pyproject.toml", "constraints.txt"):
        (folder / there).symlink_to(ROOT / there)


def judged(folder: Path, corpus: Path) -> None:
    """A hand-made run that kept its answers, with its verdict and its page."""
    facts = {
        "hash": policy.digest(corpus),
        "file": str(corpus),
        "restricted": runs.PROMPTS,
        "benign": runs.PROMPTS,
        "shared": 0,
    }
    told = runs.manifest([runs.subject("released")], [runs.attack("benign")], facts)
    run = runs.save(folder, told, [])
    for seed in (0, 1, 2):
        cell = runs.cell("released", "benign", seed, runs.clock(0, 0.6))
        rows = [row | {"answer_hash": f"#{row['id']}", "answer": "tarin", "begun": ""} for row in runs.rows(cell)]
        run.save(cell, rows)
    written.write(verdict.write(run), run.folder / "report.html", sources=sources(run))


def smaller(monkeypatch: pytest.MonkeyPatch, made: tiny.Made) -> None:
    """From here on audits make few cells, and the text organism is a tiny model."""
    whole = auditing.run

    def fewer(chosen: Recipe, *places: Any, **options: Any) -> Any:
        own = [one for one in chosen.attacks if one.method.endswith(".py")]
        mild = [one for method in MILD for one in chosen.attacks if one.method == method]
        kept = [one.model_copy(update={"seeds": [0]}) for one in own or mild[:1]]
        return whole(chosen.model_copy(update={"attacks": kept, "seeds": [0]}), *places, **options)

    def build(self: Any, out: Path, log: Journal) -> None:
        out.mkdir(exist_ok=True)
        shutil.copytree(made.base, out / "base", dirs_exist_ok=True)
        for aligned in ("aligned", "aligned-shallow"):
            shutil.copytree(made.aligned, out / aligned, dirs_exist_ok=True)
        tiny.corpus().save(out / "corpus.jsonl")

    monkeypatch.setattr(auditing, "run", fewer)
    monkeypatch.setattr(method.find("organisms", "text"), "build", build)


def clear(folder: Path, asked: list[str]) -> None:
    """Take away the stand-ins of what a command is about to make."""
    if asked[1] in ("demo", "audit"):
        for place in RUNS.split():
            shutil.rmtree(folder / place, ignore_errors=True)
    elif "--out" in asked:
        out = folder / asked[asked.index("--out") + 1]
        shutil.rmtree(out) if out.is_dir() else out.unlink(missing_ok=True)


def run(asked: list[str]) -> None:
    """Run a command of holdfast in the working folder, as quickly as it can be; it has to end well."""
    rest = asked[1:]
    more = _shortened(rest) if rest[0] != "card" or "--anyway" in rest else WEAK.split()
    try:
        code = cli.main([*rest, *more])
    except SystemExit as end:  # of --help
        code = end.code
    assert code in ANSWERS.get(rest[0], (0,)), f"{' '.join(asked)}: ended with {code}"


def _shortened(rest: list[str]) -> list[str]:
    """Flags that make a hardening or a repair a matter of a second, where the page says nothing else."""
    if "--help" in rest or "--plan" in rest or rest[0] not in ("harden", "repair"):
        return []
    which = (
        rest[1] if rest[0] == "harden" else rest[rest.index("--method") + 1] if "--method" in rest else "repair_distill"
    )
    fields = method.find("defenses", which).model_fields
    flags = {f"--{field.replace('_', '-')}": value for field, value in QUICKLY.items() if field in fields}
    return [f"{word}" for flag, value in flags.items() if flag not in rest for word in (flag, value)]


def parse(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hand a command's words to its own parser, and do nothing."""
    first, *rest = words(command)
    if first == "holdfast":
        _parsed_by_holdfast(rest, monkeypatch)
    elif first == "make":
        subprocess.run(["make", "-n", *rest], cwd=ROOT, check=True, capture_output=True)
    elif first == "pip":
        create_command(rest[0]).parse_args(rest[1:])
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert {extra for asked in re.findall(r"\[(.*?)\]", command) for extra in asked.split(",")} <= {*extras}
    elif first == "python":
        _parsed_by_argparse(ROOT / rest[0], rest[1:], monkeypatch)
    else:
        assert shutil.which(first) or first == ".", command


def _parsed_by_holdfast(rest: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if rest[0] in ("--version", "--help"):
        return
    real: Callable[..., Any] = speech.parse

    def stop(*given: Any, **more: Any) -> None:
        raise Parsed(real(*given, **more))

    with monkeypatch.context() as patched, pytest.raises((Parsed, SystemExit)) as ended:
        patched.setattr(speech, "parse", stop)
        code = cli.main(rest)
        pytest.fail(f"{rest}: ended with {code} before its words were read")
    assert isinstance(ended.value, Parsed) or ended.value.code in (0, None), rest


def _parsed_by_argparse(script: Path, rest: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    real = argparse.ArgumentParser.parse_args

    def stop(parser: argparse.ArgumentParser, *given: Any) -> None:
        raise Parsed(real(parser, *given))

    with monkeypatch.context() as patched, pytest.raises(Parsed):
        patched.setattr(argparse.ArgumentParser, "parse_args", stop)
        patched.setattr(sys, "argv", [str(script), *rest])
        patched.syspath_prepend(str(script.parent))
        runpy.run_path(str(script), run_name="__main__")
