"""Tasks of EleutherAI's lm-eval as utility: put by lm-eval to the model where it stands, scored item by item.

A task is one of lm-eval's names, or a task file of one's own; its data may be files of this machine. Needs the extra `lm-eval`.
Assumes: a score in [0, 1] for each item, higher being better, whose mean is the task's. Does not see: corpus-level metrics
(perplexity, BLEU, F1 over classes), tasks that run code or show pictures: these are refused before an audit begins.
"""

import contextlib
import hashlib
import io
import json
import logging
import math
import random
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy
from pydantic import Field

from holdfast import disk
from holdfast.items import Items, Said
from holdfast.lm import LM
from holdfast.problem import Problem, meant, printable

SEED = 1234
"""Of the choice of examples, at every milestone anew: lm-eval's own default."""


class Harness(Items):
    """Which tasks are put, and how."""

    method: Literal["lm-eval"] = "lm-eval"
    tasks: tuple[str, ...] = Field(min_length=1)
    """Names that lm-eval knows, as `mmlu`, or task files as ./mine.yaml; every item counts alike."""
    num_fewshot: int | None = Field(None, ge=0)
    """Examples before each item; the task's own number unless given."""
    chat: bool = False
    """Put items in the drive's template. lm-eval's published numbers are made without."""
    metric: str | None = None
    """As lm-eval names it: `acc_norm`, or with a filter `exact_match,flexible-extract`; each task's first unless given."""

    @property
    def described(self) -> str:
        """The tasks, and whose they are."""
        return f"lm-eval {version('lm_eval')}: {', '.join(Path(one).name for one in self.tasks)}"

    def located(self, folder: Path) -> "Harness":
        return self.model_copy(update={"tasks": tuple(disk.beside(one, folder) for one in self.tasks)})

    def ready(self) -> str:
        digest = hashlib.sha256()
        for name, (task, *scored) in _loaded(self).items():
            items = [*task.eval_docs][: self.limit]
            digest.update(json.dumps([name, *scored, task.dump_config(), items], default=str, sort_keys=True).encode())
        return digest.hexdigest()

    def __call__(self, lm: LM) -> dict[str, Said]:
        """By item, as `mmlu_anatomy/3`."""
        from lm_eval.evaluator import evaluate

        from holdfast.adapter import Adapter

        loaded = _loaded(self)
        for task, *_ in loaded.values():
            task.set_fewshot_seed(SEED)
        with _aside():
            results = evaluate(
                lm=Adapter(lm, self.chat),
                task_dict={"tasks": {name: task for name, (task, *_) in loaded.items()}},
                limit=self.limit,
                bootstrap_iters=0,
                apply_chat_template=self.chat,
            )
        return {
            f"{name}/{item['doc_id']}": _said(name, metric, item)
            for name, (_, metric, chosen) in loaded.items()
            for item in results["samples"][name]
            if item["filter"] == chosen
        }


@cache
def _loaded(asked: Harness) -> dict[str, tuple[Any, str, str]]:
    """Tasks by name, each with its metric and its filter; once a process."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise Problem("utility lm-eval: lm-eval is not installed; pip install 'holdfast[lm-eval]'") from error
    found: dict[str, Any] = {}
    with _aside():
        manager = TaskManager(include_defaults=not all(map(_own, asked.tasks)))
        for name in asked.tasks:
            if not _own(name) and name not in manager.task_index:
                raise Problem(f"utility lm-eval: no task is called {name!r}; {meant(name, manager.task_index)}")
            try:
                with contextlib.chdir(Path(name).parent if _own(name) else "."):
                    found |= manager.load([name])["tasks"]
            except Exception as error:  # of lm-eval, of the hub's client, of a task file's author
                raise Problem(
                    f"utility lm-eval, {name}: cannot be loaded ({type(error).__name__}: {printable(error)}); is its data here, "
                    "or the hub within reach?"
                ) from error
    for name, task in found.items():
        if asked.num_fewshot is not None and task.get_config("num_fewshot") != 0:
            task.set_config(key="num_fewshot", value=asked.num_fewshot)
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        _refuse(name, task)
    return {name: (task, *_scored(name, task, asked.metric)) for name, task in found.items()}


def _own(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))


def _refuse(name: str, task: Any) -> None:
    """Raise `Problem` where the task asks what an audit does not do."""
    how = task.get_config("generation_kwargs") or {}
    unfit = {
        "shows pictures or sounds": getattr(task, "MULTIMODAL", False),
        "runs what the model writes": getattr(task, "UNSAFE_CODE", False) or task.get_config("unsafe_code"),
        "draws its answers by chance": how.get("do_sample") or how.get("temperature"),
    }
    if does := [what for what, true in unfit.items() if true]:
        raise Problem(f"utility lm-eval, {name}: {does[0]}, which is not supported; choose another task")


def _scored(name: str, task: Any, asked: str | None) -> tuple[str, str]:
    """The metric by which items of the task are scored, and the filter of answers before it."""
    better, means = task.higher_is_better(), task.aggregation()
    fit = [one for one, how in means.items() if better.get(one) and getattr(how, "__name__", "") == "mean"]
    metric, _, chosen = (asked or next(iter(fit), "")).partition(",")
    filters = [one.name for one in getattr(task, "_filters", [])] or ["none"]
    if metric not in fit:
        has = f"its metric {asked}" if asked else f"it has {', '.join(means)}, which"
        raise Problem(
            f"utility lm-eval, {name}: {has} is no mean over items of which more is better; "
            + (f"there are {', '.join(fit)}" if fit else "choose a task that has one, as acc or exact_match")
        )
    if chosen and chosen not in filters:
        raise Problem(f"utility lm-eval, {name}: has no filter {chosen!r}; {meant(chosen, filters)}")
    return metric, chosen or filters[0]


def _said(name: str, metric: str, item: dict[str, Any]) -> Said:
    score, answer = float(item[metric]), item["filtered_resps"][0]
    if not (math.isfinite(score) and 0 <= score <= 1):
        raise Problem(
            f"utility lm-eval, {name}: {metric} is {score:g} of an item, and must be from 0 to 1; name another"
        )
    return Said(score, answer if isinstance(answer, str) else "")


@contextlib.contextmanager
def _aside() -> Iterator[None]:
    """lm-eval's bars and advice put away, and the count that `datasets` keeps of loads, on a server; random states put back."""
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    states = random.getstate(), numpy.random.get_state()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        random.setstate(states[0])
        numpy.random.set_state(states[1])
