"""A run as logs of Inspect, the UK AI Security Institute's evaluation framework: one log a milestone, which its viewer opens.

Written by inspect_ai's own log API. An answer is there where the run kept it, else as its hash. Needs the extra `inspect`.
"""

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from holdfast import disk, policy
from holdfast.corpus import Row
from holdfast.problem import Problem
from holdfast.record import Cell, Manifest
from holdfast.run import Run

COLUMNS = ("harm", "utility", "refusal", "coherence", "over_refusal", "learned", "fresh", "second")
"""Scores of a prompt; the first is a log's headline."""


def write(run: Run, folder: Path) -> list[Path]:
    """Write a log for each milestone of each cell, as `CELL.03.eval`, and one without samples for a cell that failed.

    Raises:
        Problem: inspect_ai is not installed, the corpus is gone, or `folder` holds something.
    """
    try:
        from inspect_ai.log import write_eval_log
    except ImportError as error:
        raise Problem("--inspect: inspect_ai is not installed; pip install 'holdfast[inspect]'") from error
    disk.refuse_taken(folder)
    manifest, written = run.manifest(), []
    prompts = {row.id: row for row in policy.prompts(Path(manifest.corpus["file"])).rows}
    with disk.whole(folder) as aside:
        for cell in run.cells():
            for name, log in _logs(cell, run.rows(cell.name), manifest, prompts):
                write_eval_log(log, str(aside / name))
                written.append(folder / name)
    return written


def _logs(
    cell: Cell, rows: list[dict[str, Any]], manifest: Manifest, prompts: dict[str, Row]
) -> Iterator[tuple[str, Any]]:
    """A cell's logs with their files' names."""
    from inspect_ai.log import EvalError, EvalLog

    if not cell.milestones:
        error = EvalError(message=cell.reason, traceback="", traceback_ansi="")
        yield f"{cell.name}.eval", EvalLog(status="error", eval=_spec(cell, manifest, []), error=error)
    for index, look in enumerate(cell.milestones):
        some = [row for row in rows if row["milestone"] == index]
        facts = look.model_dump(mode="json", exclude_none=True, exclude={*COLUMNS})
        spec = _spec(cell, manifest, some).model_copy(update={"metadata": _place(cell) | facts})
        samples = [_sample(row, prompts.get(row["id"]), index) for row in some]
        log = EvalLog(status="success", eval=spec, results=_results(some), samples=samples)
        yield f"{cell.name}.{index:02}.eval", log


def _place(cell: Cell) -> dict[str, Any]:
    facts = ("subject", "attack", "seed", "replica", "status", "reason", "start_hash")
    return {f"cell_{name}": getattr(cell, name) for name in facts}


def _spec(cell: Cell, manifest: Manifest, rows: list[dict[str, Any]]) -> Any:
    """Who was asked what: the attack is the task, the subject the model."""
    from inspect_ai.log import EvalConfig, EvalDataset, EvalSpec

    subject = next(one for one in manifest.subjects if one.name == cell.subject)
    attack = next(one for one in manifest.attacks if one.name == cell.attack)
    ids = [row["id"] for row in rows]
    return EvalSpec(
        created=datetime.fromisoformat(f"{manifest.date}T00:00:00+00:00").isoformat(),
        task=f"{manifest.name}/{cell.attack}",
        task_id=cell.name,
        run_id=manifest.name,
        task_args={"method": attack.method, "seed": cell.seed} | attack.settings,
        dataset=EvalDataset(name=manifest.corpus["file"], samples=len(ids), sample_ids=ids),
        model=f"holdfast/{cell.subject}",
        model_args={"folder": subject.folder, "hash": subject.hash},
        config=EvalConfig(),
        packages={"holdfast": manifest.version} | manifest.versions,
        metadata=_place(cell),
    )


def _sample(row: dict[str, Any], prompt: Row | None, milestone: int) -> Any:
    """One prompt and its answer. Items of tasks are in no corpus: their input is their name."""
    from inspect_ai.log import EvalSample
    from inspect_ai.model import ModelOutput
    from inspect_ai.scorer import Score

    answer = row["answer"] if row["answer"] is not None else f"sha256:{row['answer_hash']}"
    kept = {"answer": "kept" if row["answer"] is not None else "hash only", "kind": row["kind"]}
    return EvalSample(
        id=row["id"],
        epoch=1,
        input=prompt.text if prompt else row["id"],
        target=(prompt.answer or "") if prompt else "",
        output=ModelOutput.from_content("holdfast", answer),
        scores={name: Score(value=row[name], answer=answer) for name in COLUMNS if row.get(name) is not None},
        metadata=kept | {"milestone": milestone} | ({"image": prompt.image} if prompt and prompt.image else {}),
    )


def _results(rows: list[dict[str, Any]]) -> Any:
    """Mean and standard error of each score over its prompts, as Inspect's own metrics count them."""
    from inspect_ai.log import EvalMetric, EvalResults, EvalScore
    from inspect_ai.scorer import SampleScore, Score, mean, stderr

    scores = []
    for name in COLUMNS:
        values = [SampleScore(score=Score(value=row[name])) for row in rows if row.get(name) is not None]
        if values:
            found = {"mean": mean()(values), "stderr": stderr()(values)}
            metrics = {metric: EvalMetric(name=metric, value=value) for metric, value in found.items()}
            one = EvalScore(name=name, scorer=name, scored_samples=len(values), metrics=metrics)
            scores.append(one.model_copy(update={"unscored_samples": len(rows) - len(values)}))
    return EvalResults(total_samples=len(rows), completed_samples=len(rows), scores=scores)
