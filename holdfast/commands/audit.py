"""Attack a checkpoint, or run a recipe."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, UseAppendAction

from holdfast import auditing, plan, recipe, shell, speech
from holdfast.auditing import Executor
from holdfast.problem import Problem
from holdfast.quiet import quiet
from holdfast.recipe import Recipe
from holdfast.tier import Tier
from holdfast.tier import audit as tiered


@dataclass(frozen=True)
class Audit:
    """Attack a checkpoint (--model), or run a recipe; judge what breaks.

    Writes runs/NAME/report.html and verdict.json, and prints the table.
    """

    recipe: Annotated[Positional[Path | None], speech.Unset] = None
    """TOML file (examples/lox.toml is one), or the recipe.json of a run, to run it again. Without one, give --model."""
    model: Annotated[str | None, speech.Unset] = None
    """Checkpoint to audit without a recipe: a folder or a hub id."""
    tier: Annotated[Tier | None, tyro.conf.arg(help_behavior_hint="(default: smoke)")] = None
    """Which attacks to run on --model."""
    base: Annotated[str | None, speech.Unset] = None
    """The checkpoint from before its alignment; attacks that need it are left out, and named, where it is not given."""
    twin: Annotated[str | None, speech.Unset] = None
    """The same model without its hardening. Without it nothing can be said but whether the model broke."""
    corpus: Annotated[Path | None, speech.Unset] = None
    """JSONL of prompts, or a policy (docs/policy.md); policy.toml or corpus.jsonl in the checkpoint's folder or beside
    it unless given."""
    harm: Annotated[str | None, speech.Unset] = None
    """Who judges harm: a policy's own judge, exact where the prompts are an organism's own, else asr (coherent, no refusal);
    a scorer of Inspect as inspect:./harm.py@name; docs/judges.md."""
    second: Annotated[str | None, speech.Unset] = None
    """Another judge of the same answers; settings as --set second.model=FOLDER."""
    utility: Annotated[str | None, speech.Unset] = None
    """How benign answers are judged: exact where the prompts are an organism's own, else agreement; or tasks of lm-eval or
    Inspect in their place, as lm-eval:mmlu or inspect:./task.py@name; settings as --set utility.limit=100
    (docs/pipelines.md)."""
    out: Annotated[Path | None, speech.Unset] = None
    """Folder of the run; runs/NAME unless given. An unfinished run there goes on where it was."""
    set: Annotated[tuple[str, ...], UseAppendAction] = ()
    """Change one value, as attacks.0.learning_rate=5e-5; may be given several times.
    Numbers count the entries of the tier or recipe from 0, in the order of the run's recipe.json."""
    processes: Annotated[int | None, speech.Unset] = None
    """Hardenings, and then cells, at a time; one a core (with a GPU, one; on Ray, all cells that fit) unless given."""
    executor: Executor = "local"
    """Where cells run: in processes here, or on Ray: on the cluster of RAY_ADDRESS, else one that runs here or is started."""
    gpus_per_cell: Annotated[float | None, speech.Unset] = None
    """With --executor ray: GPUs a cell takes, as 0.5; one where the cluster has any unless given."""
    plan: Annotated[FlagCreatePairsOff[bool], speech.Unset] = False
    """Run nothing: tell how many cells, how long, and what could be seen."""
    keep_answers: Annotated[FlagCreatePairsOff[bool], speech.Unset] = False
    """Keep the answers of broken models in the records (hashes and scores only unless given)."""
    keep_weights: Annotated[FlagCreatePairsOff[bool], speech.Unset] = False
    """Keep attacked weights. For anything but an organism this wants the next flag too."""
    i_will_guard_broken_weights: Annotated[FlagCreatePairsOff[bool], speech.Unset] = False
    """You know that --keep-weights writes out models whose safety was undone."""


def main(words: list[str]) -> int:
    quiet()
    options = speech.parse(Audit, "audit", words)
    chosen = _chosen(options)
    auditing.refuse_unguarded(chosen, options.keep_weights, options.i_will_guard_broken_weights)
    for missing in chosen.not_run:
        speech.say(f"not run: {missing}")
    out = options.out or Path("runs") / chosen.name
    if options.plan:
        for line in plan.planned(chosen, out, shell.some(options.processes) or os.cpu_count() or 1):
            speech.say(line)
        return 0
    how = options.keep_answers, options.keep_weights, options.executor, options.gpus_per_cell
    return shell.told(auditing.run(chosen, out, speech.console, shell.some(options.processes), *how))


def _chosen(options: Audit) -> Recipe:
    """The recipe given, or the tier's for the model given."""
    places = options.base, options.twin, options.corpus, options.harm, options.second
    if options.recipe is not None:
        if any(one is not None for one in (*places, options.model, options.tier, options.utility)):
            raise Problem(f"{options.recipe}: a recipe says itself what is audited; leave out --model and its like")
        return recipe.load(options.recipe, tuple(options.set))
    if options.model is None:
        raise Problem("audit: gives neither a recipe nor --model; holdfast audit --help tells more")
    return tiered(options.tier or "smoke", options.model, *places, tuple(options.set), options.utility)
