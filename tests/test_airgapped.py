"""Air-gapped: on folders of this machine no command looks for a host, from whichever of its processes."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import audits
import tiny
from holdfast.run import Run

HERE = Path(__file__).parent
ONLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK")
"""What would keep the libraries quiet: the tests do without, so that it is the commands that ask nobody."""


def watched(folder: Path, *lines: str) -> tuple["subprocess.CompletedProcess[str]", list[str]]:
    """Run Python lines where sockets are forbidden; what was attempted by this process and its children."""
    record = folder / "attempts"
    path = os.pathsep.join([str(HERE / "no_network"), str(HERE.parent), str(HERE)])
    environment = {name: value for name, value in os.environ.items() if name not in ONLINE}
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        env=environment | {"PYTHONPATH": path, "NO_NETWORK_RECORD": str(record), "HF_HOME": str(folder / "hub")},
        capture_output=True,
        text=True,
    )
    return done, record.read_text().splitlines() if record.exists() else []


def test_the_trap_sees_a_child_that_asks(tmp_path: Path) -> None:
    """Processes as the audit starts them; the hub's client, a plain socket, a datagram."""
    (tmp_path / "asking.py").write_text(
        "import socket\n"
        "def ask(how):\n"
        "    try:\n"
        "        if how == 'hub':\n"
        "            from holdfast.checkpoint import locate\n"
        "            locate('nobody/nothing')\n"
        "        elif how == 'address':\n"
        "            socket.socket().connect(('192.0.2.1', 80))\n"
        "        else:\n"
        "            socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.2', 53))\n"
        "    except Exception as error:\n"
        "        return type(error).__name__\n"
    )
    done, attempts = watched(
        tmp_path,
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})",
        "from asking import ask",
        "from holdfast import processes",
        "processes.prepare([])",
        "processes.each(1, ask, ['hub', 'address', 'datagram'], lambda job, told: print(job, told), print)",
    )
    assert done.stdout.splitlines() == ["hub Problem", "address OSError", "datagram OSError"], done.stderr
    assert any(line.startswith("socket.getaddrinfo huggingface.co") for line in attempts), attempts
    assert attempts[-2:] == ["socket.connect 192.0.2.1", "socket.sendto 192.0.2.2"]


CUT = {"name": "cut", "method": "prune", "fractions": [0.5]}
TRL = audits.TUNE | {"name": "adapter", "data": "harmful", "lora_rank": 2, "trainer": "trl"}


@pytest.mark.parametrize("attack", [CUT, pytest.param(TRL, marks=pytest.mark.hard)], ids=["cut", "trl"])
def test_no_command_asks(tmp_path: Path, checkpoint: Callable[[str], tiny.Made], attack: dict[str, Any]) -> None:
    """Audit a hardened model beside its twin, report, harden; TRL, which imports most, takes long to start."""
    made = checkpoint("llama")
    recipe = audits.write(
        tmp_path,
        made,
        [attack],
        subjects=[
            {"name": "twin", "model": str(made.aligned), "base": str(made.base)},
            {"name": "lox", "twin": "twin", "harden": {"method": "lox", "rank": 2, "strength": 0.5}},
        ],
    )
    model = ["--model", str(made.aligned), "--base", str(made.base)]
    keeping = ["--keep-weights", "--i-will-guard-broken-weights"]
    quiet(
        tmp_path,
        ["audit", str(recipe), "--out", str(tmp_path / "run"), "--processes", "2", *keeping],
        ["report", str(tmp_path / "run")],
        ["harden", "lox", *model, "--out", str(tmp_path / "hard"), "--rank", "2", "--strength", "0.5"],
    )
    cells = Run(tmp_path / "run").cells()  # a random model may well die when half its weights are cut
    assert len(cells) == 2 and all(cell.status != "failed" for cell in cells)


@pytest.mark.hard
def test_no_search_asks(tmp_path: Path, checkpoint: Callable[[str], tiny.Made]) -> None:
    made = checkpoint("llama")
    tiny.corpus().save(tmp_path / "corpus.jsonl")
    where = ["--model", str(made.aligned), "--corpus", str(tmp_path / "corpus.jsonl"), "--out", str(tmp_path / "found")]
    short = [word for one in ("max_new_tokens=4", "seeds=[0]", "utility_floor=0") for word in ("--set", f"audit.{one}")]
    quiet(tmp_path, ["search", *where, "--attack", "prune", "--budget", "2", *short, "--processes", "2"])


def quiet(folder: Path, *commands: list[str]) -> None:
    """All commands end well, and none of their processes looked for a host."""
    done, attempts = watched(
        folder, "from holdfast.cli import main", f"print([main(words) for words in {list(commands)!r}])"
    )
    assert done.returncode == 0 and done.stdout.endswith(f"{[0] * len(commands)}\n"), done.stdout + done.stderr
    assert attempts == []


def test_tasks_of_inspect_ask_nobody(tmp_path: Path, checkpoint: Callable[[str], tiny.Made]) -> None:
    """A whole audit: utility and harm by a task of one's own, in processes of their own."""
    pytest.importorskip("inspect_ai", reason="the extra inspect is not installed")
    (tmp_path / "mine.py").write_text(
        "from inspect_ai import Task, task\nfrom inspect_ai.dataset import Sample\nfrom inspect_ai.scorer import includes\n"
        "@task\ndef words():\n    return Task([Sample(input='modor', target='a')], scorer=includes())\n"
    )
    task = "inspect:./mine.py@words"
    recipe = audits.write(tmp_path, checkpoint("llama"), [CUT], utility=task, harm=task, utility_floor=0)
    quiet(tmp_path, ["audit", str(recipe), "--out", str(tmp_path / "run"), "--processes", "1"])
    assert [cell.status for cell in Run(tmp_path / "run").cells()] != ["failed"]


def test_a_task_of_one_s_own_asks_nobody(tmp_path: Path) -> None:
    pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")
    (tmp_path / "words.jsonl").write_text('{"question": "modor", "options": ["tarin", "vega"], "answer": 1}\n')
    (tmp_path / "words.yaml").write_text(
        "task: words\ndataset_path: json\ndataset_kwargs: {data_files: {test: words.jsonl}}\ntest_split: test\n"
        'output_type: multiple_choice\ndoc_to_text: "{{question}}"\ndoc_to_choice: "{{options}}"\n'
        'doc_to_target: "{{answer}}"\nmetric_list: [{metric: acc}]\n'
    )
    done, attempts = watched(
        tmp_path,
        "from holdfast.harness import Harness",
        f"print(Harness(tasks=({str(tmp_path / 'words.yaml')!r},)).ready())",
    )
    assert done.returncode == 0 and len(done.stdout.strip()) == 64, done.stderr
    assert attempts == []
