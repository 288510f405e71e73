"""Tasks of Inspect, the UK AI Security Institute's framework: put at every milestone as utility; their scorers as judges of harm.

A task is of a file of one's own, as ./task.py@name, or of an installed package, as package/task. Inspect itself runs its data,
solver and scorer; the log stays in memory. Needs the extra `inspect`. Assumes: a score for each sample that reads as a number.
Does not do: sandboxes, tools, pictures, draws by chance, another model as grader; such tasks are refused before an audit begins.
"""

import contextlib
import hashlib
import io
import json
import logging
import random
from collections.abc import Iterator, Sequence
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy
from pydantic import Field

from holdfast.items import Items, Said, task_beside
from holdfast.lm import LM
from holdfast.problem import Problem, printable
from holdfast.reading import Reading
from holdfast.served import Served

SEED = 1234
"""Of whatever a task shuffles by Python's or numpy's own chance: every process and milestone asks the same."""
LOGS = "memory://holdfast"
"""Where Inspect writes its logs: nothing of an answer reaches a disk."""
PROBE = "Good day."
"""What stands for an answer where a task is tried before an audit."""


class Inspection(Items):
    """Which tasks are put, and how they are read."""

    asks_only = True
    method: Literal["inspect"]
    tasks: tuple[str, ...] = Field(min_length=1)
    """Tasks of packages, as `inspect_evals/gsm8k`, or of one's own, as ./task.py@name; every sample counts alike."""
    args: tuple[str, ...] = ()
    """Arguments of the tasks, as `subject=history`."""
    reading: Reading = Reading()
    """Which score is read, 1 being the best."""
    max_tokens: int | None = Field(None, gt=0)
    """Tokens of an answer where a task says nothing; as of the audit's own prompts unless given."""

    @property
    def described(self) -> str:
        return f"Inspect {version('inspect_ai')}: {', '.join(Path(one).name for one in self.tasks)}"

    def located(self, folder: Path) -> "Inspection":
        return self.model_copy(update={"tasks": tuple(task_beside(one, folder) for one in self.tasks)})

    def ready(self) -> str:
        return _tried(self)

    def __call__(self, lm: LM | Served) -> dict[str, Said]:
        """By sample, as `gsm8k/3`."""
        from holdfast import provider

        said = {}
        for name, task in _loaded(self.tasks, self.args).items():
            most = self.max_tokens or lm.drive.max_new_tokens
            for sample in _run(name, task, partial(provider.answers, lm), most, self.limit):
                said[f"{name}/{sample.id}"] = Said(self._score(name, sample), sample.output.completion)
        return said

    def _score(self, name: str, sample: Any) -> float:
        where = f"utility inspect, {name}, sample {sample.id}"
        score = self.reading.read(sample.scores or {}, where)
        if score is None:
            raise Problem(f"{where}: was left unscored; utility needs a score of every sample")
        return score


@cache
def _tried(asked: Inspection) -> str:
    """Put the first sample of each task to a model that only greets; returns a hash of the tasks."""
    digest = hashlib.sha256()
    for name, task in _loaded(asked.tasks, asked.args).items():
        for sample in _run(name, task, _greeting, 1, 1):
            asked._score(name, sample)
        samples = [one.model_dump(mode="json") for one in task.dataset[: asked.limit]]
        digest.update(json.dumps([name, str(task.version), samples], default=str, sort_keys=True).encode())
    return digest.hexdigest()


def graded(
    task: str, args: tuple[str, ...], reading: Reading, exchanges: Sequence[tuple[str, str]]
) -> list[float | None]:
    """What a task's scorer makes of prompts with answers; None where it leaves one unscored.

    A prompt that one of the task's samples asks is scored as that sample, with its target and metadata; any other as one that has
    neither. The task's solver is not run. Raises `Problem` where the scorer cannot be used.
    """
    ((name, whole),) = _loaded((task,), args).items()
    from inspect_ai import Task
    from inspect_ai.dataset import MemoryDataset, Sample

    known = {_text(sample): sample for sample in whole.dataset}
    samples = [known.get(prompt, Sample(input=prompt)) for prompt, _ in exchanges]
    samples = [sample.model_copy(update={"id": number}) for number, sample in enumerate(samples, start=1)]
    replayed = Task(
        dataset=MemoryDataset(samples),
        solver=_replay({number: answer for number, (_, answer) in enumerate(exchanges, start=1)}),
        scorer=whole.scorer,
        metrics=whole.metrics,
        name=name,
    )
    found = _run(name, replayed, _greeting, 1, None)
    scores = {sample.id: reading.read(sample.scores or {}, f"judge inspect, {name}") for sample in found}
    return [scores[number] for number in range(1, len(exchanges) + 1)]


def _replay(answers: dict[Any, str]) -> Any:
    """A solver that says what was said already."""
    from inspect_ai.model import ModelOutput
    from inspect_ai.solver import solver

    @solver
    def replay() -> Any:
        async def solve(state: Any, generate: Any) -> Any:
            state.output = ModelOutput.from_content("holdfast/model", answers[state.sample_id])
            state.messages.append(state.output.message)
            return state

        return solve

    return replay()


def _greeting(questions: Sequence[Any]) -> list[Any]:
    from holdfast.provider import Answer

    return [Answer(PROBE)] * len(questions)


def _text(sample: Any) -> str:
    """What a sample asks."""
    asked = sample.input
    return asked if isinstance(asked, str) else next((one.text for one in reversed(asked) if one.role == "user"), "")


@cache
def _loaded(specs: tuple[str, ...], args: tuple[str, ...]) -> dict[str, Any]:
    """Tasks by name; once a process."""
    try:
        from inspect_ai._eval.loader import load_tasks  # the one way to tasks of files and packages alike
    except ImportError as error:
        raise Problem("inspect: inspect_ai is not installed; pip install 'holdfast[inspect]'") from error
    found: dict[str, Any] = {}
    given = dict(_argument(one) for one in args)
    for spec in specs:
        with _aside():
            try:
                tasks = load_tasks([spec], given)
            except (Exception, SystemExit) as error:  # of Inspect, of a task's author, of a hub's client
                why = f"{type(error).__name__}: {printable(error)}"
                raise Problem(f"inspect, {spec}: cannot be loaded ({why}); is its data here?") from error
        if not tasks:
            raise Problem(f"inspect, {spec}: no such task; name one of a file, as ./task.py@name, or as package/task")
        for task in tasks:
            if task.name in found:
                raise Problem(f"inspect, {spec}: a second task is called {task.name!r}; name one of them")
            _refuse(spec, task)
            found[task.name] = task
    return found


def _argument(text: str) -> tuple[str, Any]:
    name, is_there, value = text.partition("=")
    if not is_there:
        raise Problem(f"inspect, args: {text!r} gives no value; write it as name=value")
    with contextlib.suppress(ValueError):
        value = json.loads(value)
    return name, value


def _refuse(spec: str, task: Any) -> None:
    """Raise `Problem` where the task says already that it asks what an audit does not do."""
    samples = [*task.dataset] if task.dataset is not None else []
    unfit = {
        "has no scorer": not task.scorer,
        "has no samples": not samples,
        "needs a sandbox": task.sandbox or any(one.sandbox for one in samples),
        "names a model of its own": task.model or task.model_roles,
    }
    if does := [what for what, true in unfit.items() if true]:
        raise Problem(f"inspect, {spec}: {does[0]}, which is not supported; choose another task")


def _run(name: str, task: Any, ask: Any, most: int, limit: int | None) -> list[Any]:
    """Inspect's samples, scored. Raises `Problem` where the task wants what is not done, or fails."""
    import inspect_ai

    from holdfast import provider

    with _aside(), provider.asking(ask, most) as model:
        try:
            (log,) = inspect_ai.eval(
                task,
                model=model,
                limit=limit,
                epochs=1,
                fail_on_error=True,
                max_samples=len(task.dataset),
                log_dir=LOGS,
                log_realtime=False,
                log_level="error",
                display="none",
                score_display=False,
                ctl_server=False,
            )
            samples = [*(log.samples or [])]  # read from the log only now
        except (Exception, SystemExit) as error:
            raise _explained(name, model.api, f"{type(error).__name__}: {error}") from error
    if model.api.refused or log.status != "success":
        raise _explained(name, model.api, log.error.message if log.error else log.status)
    return samples


def _explained(name: str, asked: Any, why: str) -> Problem:
    if asked.refused:
        return Problem(f"inspect, {name}: {asked.refused}, which is not supported; choose another task")
    return asked.failed or Problem(f"inspect, {name}: cannot be run ({printable(why)}); mend the task")


@contextlib.contextmanager
def _aside() -> Iterator[None]:
    """What Inspect prints, logs and keeps put away; random states and the program's own logging put back."""
    import fsspec

    root = logging.getLogger()
    states, handlers, level = (random.getstate(), numpy.random.get_state()), root.handlers[:], root.level
    random.seed(SEED)
    numpy.random.seed(SEED)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        random.setstate(states[0])
        numpy.random.set_state(states[1])
        root.handlers[:], root.level = handlers, level
        kept = fsspec.filesystem("memory")
        if kept.exists(LOGS):
            kept.rm(LOGS, recursive=True)
