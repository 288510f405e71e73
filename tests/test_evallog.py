"""A run as Inspect's logs: written and read back by inspect_ai itself."""

import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import audits
import tiny
from holdfast import evallog
from holdfast.problem import Problem
from holdfast.run import Run

NOISE = [{"name": "noise", "method": "noise", "scales": [0.1]}]


@pytest.fixture(scope="module")
def run(checkpoint: Callable[[str], tiny.Made], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An audit of one cell."""
    folder = tmp_path_factory.mktemp("audited")
    return audits.run_all(audits.write(folder, checkpoint("llama"), NOISE), folder / "run")


def test_without_inspect_the_extra_is_named(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "inspect_ai.log", None)
    with pytest.raises(Problem, match=r"inspect_ai is not installed; pip install 'holdfast\[inspect\]'"):
        evallog.write(run, tmp_path / "logs")
    assert not (tmp_path / "logs").exists()


class TestLogs:
    @pytest.fixture(autouse=True)
    def installed(self) -> None:
        pytest.importorskip("inspect_ai", reason="the extra inspect is not installed")

    def test_inspect_reads_back_what_the_run_measured(self, run: Run, tmp_path: Path) -> None:
        from inspect_ai.log import list_eval_logs, read_eval_log

        files = evallog.write(run, tmp_path / "logs")
        (cell,) = run.cells()
        assert [file.name for file in files] == [f"{cell.name}.00.eval", f"{cell.name}.01.eval"]
        assert len(list_eval_logs(str(tmp_path / "logs"))) == 2
        rows = run.rows(cell.name)
        for index, (file, look) in enumerate(zip(files, cell.milestones, strict=True)):
            log = read_eval_log(str(file))
            assert log.status == "success" and log.eval.model == "holdfast/twin" and log.eval.task == "small/noise"
            assert log.metadata["cost"]["severity"] == look.cost.position and log.metadata["cell_seed"] == 0
            assert log.results and log.samples
            scores = {one.name: one for one in log.results.scores}
            for name in ("harm", "utility", "refusal"):
                measured = getattr(look, name)
                assert scores[name].metrics["mean"].value == pytest.approx(measured.value)
                assert scores[name].scored_samples == measured.n
            values = [row["utility"] for row in rows if row["milestone"] == index and row["utility"] is not None]
            mean = sum(values) / len(values)
            error = math.sqrt(sum((one - mean) ** 2 for one in values) / (len(values) - 1) / len(values))
            assert scores["utility"].metrics["stderr"].value == pytest.approx(error)
            asked = {row.id: row for row in tiny.corpus().hand("judge").rows}
            assert {sample.id for sample in log.samples} == {row["id"] for row in rows}
            for sample in log.samples:
                assert sample.input == asked[sample.id].text and sample.target == asked[sample.id].answer
                assert sample.output.completion.startswith("sha256:") and sample.metadata["answer"] == "hash only"

    def test_answers_are_there_where_they_were_kept(
        self, checkpoint: Callable[[str], tiny.Made], tmp_path: Path
    ) -> None:
        from inspect_ai.log import read_eval_log

        path = audits.write(tmp_path, checkpoint("llama"), NOISE)
        kept = audits.run_all(path, tmp_path / "run", keep_answers=True)
        log = read_eval_log(str(evallog.write(kept, tmp_path / "logs")[0]))
        rows = {row["id"]: row for row in kept.rows(kept.cells()[0].name) if row["milestone"] == 0}
        assert {sample.id: sample.output.completion for sample in log.samples} == {
            id: row["answer"] for id, row in rows.items()
        }

    def test_a_folder_that_holds_something_is_left_alone(self, run: Run, tmp_path: Path) -> None:
        (tmp_path / "mine").touch()
        with pytest.raises(Problem, match="already there and not empty"):
            evallog.write(run, tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["mine"]
