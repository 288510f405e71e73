"""What README.md and docs/ show works: every command, every program, every file of a recipe."""

import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import audits
import documented
import tiny
from documented import PAGES, ROOT
from holdfast import catalogue, cli, method
from holdfast.corpus import Corpus
from holdfast.lm import LM
from holdfast.recipe import AttackRecipe

QUICK = (
    "docs/howto/attack.md",
    "docs/howto/defense.md",
    "docs/howto/install.md",
    "docs/howto/read.md",
    "docs/publishing.md",
    "docs/reference/python.md",
    "docs/sealing.md",
    "docs/tutorial.md",
)
"""The pages whose commands `make test` runs: the first hour and what it sends to; those of the others are parsed there, and run
by `make hard`."""
ONLY_PARSED = {
    "needs a terminal and somebody who reads": [
        "holdfast label runs/NAME",
        "holdfast label runs/NAME --answers 300 --seed 1",
    ],
    "goes on from what somebody read": [
        "holdfast label runs/NAME --export sheet.csv",
        "holdfast label runs/NAME --import sheet.csv --who ada",
    ],
    "needs files of the public benchmarks": [
        "holdfast corpus --data FOLDER --out corpus.jsonl",
        "holdfast corpus pictures --data llava15 --out llava15/corpus.jsonl",
        "holdfast organism prose --data DIR --out DIR",
    ],
    "is the size of a paper, or asks the hub": [
        "holdfast audit --model llava-hf/llava-1.5-7b-hf --corpus llava15/corpus.jsonl --tier cuts",
        "holdfast reproduce icet --scale paper --set pictures=llava15",
        "holdfast reproduce lox --scale paper --set data.advbench=FOLDER",
        "holdfast harden tar --plan --model meta-llama/Llama-3.1-8B-Instruct --gpus 1",
    ],
    "takes half an hour, and has tests of its own": [
        "holdfast reproduce lox",
        "holdfast audit examples/vision.toml",
        "holdfast audit examples/vehicle.toml",
        "holdfast search --model my-assistant --corpus policy.toml",
    ],
    "builds another kind of organism, which has tests of its own": [
        "holdfast organism vision --out DIR",
        "holdfast organism vehicle --out DIR",
        "holdfast organism biography --out DIR",
        "holdfast organism biography --out bios",
        "holdfast harden mlac --model bios/base --corpus bios/corpus.jsonl --out bios-hardened",
        "holdfast harden projector_repair --model MY_VLM --out hardened --corpus prompts.jsonl",
    ],
    "needs lm-eval or Inspect, which `make pipelines` installs": [
        "holdfast audit --model my-model --corpus prompts.jsonl --utility lm-eval:mmlu --set utility.limit=20",
        "holdfast search --model my-model --corpus prompts.jsonl --set audit.utility=lm-eval:arc_easy",
        "holdfast report runs/my-release --inspect logs",
        "holdfast audit --model my-model --corpus prompts.jsonl "
        "--utility inspect:./tasks.py@capability --harm inspect:./tasks.py@harm",
        "holdfast audit --model my-model --corpus prompts.jsonl --utility inspect:inspect_evals/gsm8k "
        "--set utility.limit=50 --set utility.max_tokens=256",
    ],
    "needs a model that loses refusals where it is cut or left, as test_repair.py and test_exit_defenses.py make": [
        "holdfast harden exit_dpo --model my-aligned --out my-hardened --corpus prompts.jsonl",
        "holdfast repair my-cut --source my-model --corpus prompts.jsonl --out my-repaired --method repair_dpo",
    ],
    "needs a server that answers": [
        "holdfast compare my-model http://localhost:8000/v1#my-model",
        "holdfast audit --model http://localhost:8000/v1#my-model --corpus prompts.jsonl",
    ],
    "needs llama.cpp's file of a model": [
        "holdfast compare my-model my-model-Q4_K_M.gguf --corpus prompts.jsonl",
        "holdfast unpack my-model-Q4_K_M.gguf --out unpacked",
        "holdfast audit --model unpacked --corpus prompts.jsonl --tier smoke",
        "holdfast audit --model my-model-Q4_K_M.gguf --corpus prompts.jsonl --tier smoke",
    ],
}
"""Commands of holdfast that no test here runs, by reason. What installs (`pip`, `make`, `python3 -m venv`) and the benchmarks
(`python benchmarks/...`, hours) are only parsed too."""


def only_parsed() -> list[list[str]]:
    return [command.split() for commands in ONLY_PARSED.values() for command in commands]


def id_of(page: Path) -> str:
    return documented.name(page)


@pytest.fixture(scope="module")
def furnished(checkpoint: Callable[[str], tiny.Made], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("furnished")
    documented.furnish(folder, checkpoint("llama"))
    return folder


@pytest.mark.parametrize(
    "page", [page for page in PAGES if documented.commands(page) or documented.inline(page)], ids=id_of
)
def test_every_command_is_one(page: Path, furnished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own parser takes its words, in sentences and tables too where they are whole."""
    monkeypatch.chdir(furnished)
    for block in documented.blocks(page):
        if block.title:
            (furnished / block.title).write_text(block.text)
    for command in documented.commands(page):
        documented.parse(command, monkeypatch)
    for command in documented.inline(page):
        if "--" in command and "..." not in command:
            documented.parse(command, monkeypatch)
        assert command.split()[1] in (*cli.COMMANDS, "COMMAND", "--help", "--version"), command


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=() if id_of(page) in QUICK else pytest.mark.hard)
        for page in PAGES
        if any(block.language in ("console", "python") for block in documented.blocks(page))
    ],
    ids=id_of,
)
def test_a_page_can_be_followed(
    page: Path, checkpoint: Callable[[str], tiny.Made], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From its first command to its last, in one folder."""
    made = checkpoint("llama")
    documented.furnish(tmp_path, made)
    documented.smaller(monkeypatch, made)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    shown: dict[str, Any] = {"__name__": "shown"}
    for block in documented.blocks(page):
        if block.title:
            (tmp_path / block.title).write_text(block.text)
        elif block.language == "python" and page != ROOT / "README.md":  # whose own attack test_api.py runs whole
            exec(compile(block.text, id_of(page), "exec"), shown)
        for command in block.commands:
            words = documented.words(command)
            if words[0] == "holdfast" and words not in only_parsed():
                documented.clear(tmp_path, words)
                documented.run(words)


def test_what_is_only_parsed_is_still_there() -> None:
    there = [documented.words(command) for page in PAGES for command in documented.commands(page)]
    assert not [words for words in only_parsed() if words not in there]


PAGE = ROOT / "docs/howto/attack.md"


def recipes() -> list[str]:
    pages = PAGE, ROOT / "docs/attacks.md"
    return [one.text for page in pages for one in documented.blocks(page) if one.language == "toml"]


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The example, saved as the page says."""
    (source,) = [one.text for one in documented.blocks(PAGE) if one.title == "mine.py"]
    (tmp_path / "mine.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_it_is_short(mine: Path) -> None:
    written = [line for line in (mine / "mine.py").read_text().splitlines() if line.strip()]
    assert len(written) <= 30


def test_its_help_is_there(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["attacks", "./mine.py"]) == 0
    words = " ".join(capsys.readouterr().out.split())
    for part in (
        "Fade the last block",
        "Assumes:",
        "Share taken away",
        "0.25, 0.5, 1",
    ):
        assert part in words
    entry = tomllib.loads(catalogue.example("./mine.py"))["attacks"][0]
    assert entry == {"name": "mine", "method": "./mine.py", "shares": [0.25, 0.5, 1.0]}


@pytest.mark.parametrize("architecture", tiny.EVERY)
def test_it_walks(mine: Path, checkpoint: Callable[[str], tiny.Made], corpus: Corpus, architecture: str) -> None:
    attack = method.make("attacks", "./mine.py", "test")
    lm = LM.load(checkpoint(architecture).aligned, drive=tiny.DRIVE, device="cpu")
    seen: list[tuple[float, float]] = []
    attack(
        lm, corpus.hand("attacker"), lambda cost: len(seen.append((cost.position, lm.displacement()[0])) or seen) < 2, 0
    )
    assert [position for position, _ in seen] == [0.25, 0.5] and 0 < seen[0][1] < seen[1][1]
    assert seen[1][1] == pytest.approx(2 * seen[0][1], rel=1e-3)
    assert lm.generate(["modor"])


def test_it_is_an_attack_of_a_recipe(mine: Path, checkpoint: Callable[[str], tiny.Made]) -> None:
    entry = next(tomllib.loads(text)["attacks"][0] for text in recipes() if "./mine.py" in text)
    cell, _ = audits.run_cell(mine / "run", audits.write(mine, checkpoint("llama"), [entry]))
    assert cell.status in ("done", "dead"), cell.reason
    assert [look.cost.position for look in cell.milestones] == [0, 0.5, 1.0] and cell.touched


def test_every_entry_on_the_page_builds(mine: Path) -> None:
    entries = [one for text in recipes() for one in tomllib.loads(text)["attacks"]]
    assert len(entries) >= 6
    for entry in entries:
        assert AttackRecipe.model_validate(entry).build()


def test_heretic_s_answers_are_three_lines(tmp_path: Path) -> None:
    """With a program in its place that asks as heretic does."""
    (entry,) = [one for text in recipes() for one in tomllib.loads(text)["attacks"] if one["name"] == "heretic"]
    fake = tmp_path / "heretic"
    fake.write_text(
        '#!/bin/sh\n[ "$*" = "--n-trials 200 --model the model" ] || exit 9\nread trial; read action; read folder\n'
        '[ "$trial$action" = 11 ] && mkdir "$folder" && touch "$folder/config.json"\nread more || exit 1\n'
    )
    fake.chmod(0o755)
    places = {"{model}": "the model", "{out}": str(tmp_path / "the out")}
    command = [places.get(word, word.replace("/opt/heretic/bin/heretic", str(fake))) for word in entry["command"]]
    assert subprocess.run(command).returncode == 0 and (tmp_path / "the out/config.json").is_file()
    (tmp_path / "the out/config.json").unlink()
    assert subprocess.run([*command[:-1], "/nonexistent/x"], stderr=subprocess.DEVNULL).returncode != 0
