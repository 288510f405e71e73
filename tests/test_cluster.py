"""Ray: the same cells as on this machine, with nothing shared but the object store, and workers that die."""

import contextlib
import importlib.util
import os
import secrets
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console

import audits
import tiny
from audits import TUNE
from holdfast import cli, verdict
from holdfast.problem import Problem

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="the extra ray is not installed")


@pytest.fixture(scope="module")
def made(checkpoint: Callable[[str], tiny.Made]) -> tiny.Made:
    return checkpoint("llama")


NODES = """
import sys
from ray.cluster_utils import Cluster
store = {"object_store_memory": 100 * 2**20}
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **store})
try:
    for _ in range(2):
        cluster.add_node(num_cpus=1, **store)
    print("at", cluster.address, flush=True)
    sys.stdin.read()
finally:
    cluster.shutdown()
"""
"""A real cluster of three nodes on this machine: a head that runs nothing, and two of one core."""


@contextlib.contextmanager
def started() -> Iterator[tuple[Path, psutil.Process]]:
    """The folder for temporary files on the nodes of a cluster that `RAY_ADDRESS` names meanwhile, and the process above them."""
    with tempfile.TemporaryDirectory(prefix="hf-", ignore_cleanup_errors=True) as elsewhere:
        secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        kept = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        place = os.environ | secret | {"TMPDIR": elsewhere}
        running = subprocess.Popen([sys.executable, "-c", NODES], env=place, **kept)
        try:
            said = next(line for line in running.stdout if line.startswith("at "))
            with pytest.MonkeyPatch.context() as patch:
                for name, value in (secret | {"RAY_ADDRESS": said.split()[1]}).items():
                    patch.setenv(name, value)
                yield Path(elsewhere), psutil.Process(running.pid)
        finally:
            running.communicate()


@pytest.fixture(scope="module")
def nodes() -> Iterator[Path]:
    with started() as (elsewhere, _):
        yield elsewhere


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, made: tiny.Made, nodes: Path) -> dict[str, Any]:
    """One audit on this machine and on the cluster. On the cluster, one of its cells is killed at the first try.

    Few cells, for each has a worker of its own there, which must first import all that it needs.
    """
    folder, tuned = tmp_path_factory.mktemp("both"), {key: value for key, value in TUNE.items() if key != "method"}
    once = (
        "seen = Path(self.word)",
        "if seen.parent.exists() and not seen.exists():",
        "    seen.write_text(f'{lm.folder} {__file__}')",
        "    os.kill(os.getpid(), signal.SIGKILL)",
        "from holdfast import method",
        f"method.make('attacks', 'finetune', 'test', **{tuned})(lm, hand, at, seed)",
    )
    word = folder / "deadly/seen"
    own = {"name": "own", "method": audits.attack(folder, "own", *once), "seeds": [0], "word": str(word)}
    lox = {"name": "lox", "twin": "twin", "harden": {"method": "lox", "rank": 2, "strength": 0.5}}
    twin = {"name": "twin", "model": str(made.aligned), "base": str(made.base)}
    path = audits.write(folder, made, [own], subjects=[twin, lox])
    local = audits.run_all(path, folder / "local")
    word.parent.mkdir()
    console = Console(record=True, width=200, file=open(os.devnull, "w"))  # noqa: SIM115
    ray = audits.run_all(path, folder / "ray", console, executor="ray")
    return {
        "local": local,
        "ray": ray,
        "said": console.export_text(),
        "seen": word.read_text(),
        "folder": folder,
        "nodes": nodes,
    }


@pytest.mark.hard
@needs_ray
def test_cells_are_the_same_bytes_as_on_this_machine(both: dict[str, Any]) -> None:
    here, there = (audits.cells(both["folder"] / name) for name in ("local", "ray"))
    assert len(here) == 4 and here == there
    one, other = (audits.timeless(verdict.write(both[name])) for name in ("local", "ray"))
    assert one == other.replace(str(both["folder"] / "ray"), str(both["folder"] / "local"))


@pytest.mark.hard
@needs_ray
def test_a_worker_killed_in_mid_cell_is_tried_again(both: dict[str, Any]) -> None:
    assert {cell.status for cell in both["ray"].cells()} == {"done"}
    assert both["said"].count("its worker died") == 1 and "it is tried once more" in both["said"]


@pytest.mark.hard
@needs_ray
def test_nodes_read_what_was_sent_to_them(both: dict[str, Any]) -> None:
    folder, file = map(Path, both["seen"].split())
    assert both["nodes"] in folder.parents and both["nodes"] in file.parents
    assert file.name == "own.py"


def refused(path: Path, out: Path, **options: Any) -> str:
    with pytest.raises(Problem) as caught:
        audits.run_all(path, out, **options)
    return str(caught.value)


@pytest.fixture
def path(tmp_path: Path, made: tiny.Made) -> Path:
    return audits.write(tmp_path, made, [TUNE | {"name": "tune"}])


@pytest.mark.hard
@needs_ray
def test_more_gpus_than_there_are(path: Path, tmp_path: Path, nodes: Path) -> None:
    said = refused(path, tmp_path / "run", executor="ray", gpus_per_cell=2)
    assert "no node of the cluster has 2 GPUs (the most is 0); give --gpus-per-cell less" in said


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"executor": "ray", "keep_weights": True}, "--keep-weights: only this machine may write them"),
        ({"gpus_per_cell": 0.5}, "--gpus-per-cell: cells on this machine share its GPUs"),
        ({"executor": "ray", "gpus_per_cell": 1.5}, "give a share from 0 to 1, or a whole number"),
        ({"executor": "ray", "gpus_per_cell": -1}, "give a share from 0 to 1, or a whole number"),
    ],
)
def test_options_that_do_not_go_together(path: Path, tmp_path: Path, options: dict[str, Any], says: str) -> None:
    assert says in refused(path, tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_an_unknown_executor(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["audit", str(path), "--executor", "slurm"])
    assert "local" in capsys.readouterr().err


@pytest.mark.hard
@needs_ray
def test_a_lost_cluster_leaves_every_finished_cell(tmp_path: Path, made: tiny.Made) -> None:
    lines = ("if seed and not Path(self.word).exists(): time.sleep(900)", "at(Cost(steps=1))")
    own = {"name": "own", "method": audits.attack(tmp_path, "own", *lines), "word": str(tmp_path / "calm")}
    path, first = audits.write(tmp_path, made, [own], seeds=[0, 1]), tmp_path / "run/cells/twin.own.0.json"

    with started() as (_, above):

        def strike() -> None:
            while not first.exists():
                time.sleep(0.1)
            for process in [*above.children(recursive=True), above]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()

        threading.Thread(target=strike, daemon=True).start()
        says = "the cluster was lost; finished cells are kept, the same command goes on"
        assert says in refused(path, tmp_path / "run", executor="ray")
    before = first.stat().st_mtime_ns
    assert [file.name for file in first.parent.glob("*.parquet")] == ["twin.own.0.parquet"]
    (tmp_path / "calm").touch()
    assert {cell.status for cell in audits.run_all(path, tmp_path / "run").cells()} == {"done"}
    assert first.stat().st_mtime_ns == before


@pytest.mark.hard
@needs_ray
def test_a_cluster_is_started_and_ended_where_there_is_none(
    tmp_path: Path, made: tiny.Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = audits.write(tmp_path, made, [TUNE | {"name": "tune"}])
    with tempfile.TemporaryDirectory(prefix="hf-", ignore_cleanup_errors=True) as elsewhere:
        for name, value in {"RAY_ADDRESS": "local", "TMPDIR": elsewhere, "HOME": str(tmp_path)}.items():
            monkeypatch.setenv(name, value)  # Ray keeps its key in the home
        run = audits.run_all(path, tmp_path / "run", executor="ray")
        assert [cell.status for cell in run.cells()] == ["done"]
        left = [one for one in psutil.process_iter(["cmdline"]) if elsewhere in " ".join(one.info["cmdline"] or [])]
        psutil.wait_procs(left, timeout=30)
        assert not [one for one in left if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
