"""Audits and hardenings as Python functions: what `holdfast audit` and `holdfast harden` do, with the same records.

Attacks and defenses may be values. Attacks are run in processes of their own, so that their classes must lie in files.
"""

import contextlib
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from rich.console import Console

from holdfast import auditing, notebook, one_hardening, policy, processes, recipe, tier, values, verdict
from holdfast.audited import Audited
from holdfast.auditing import Executor
from holdfast.checkpoint import locate
from holdfast.display import teller
from holdfast.drive import Drive, Template
from holdfast.lm import LM
from holdfast.method import Defense, Eval, make
from holdfast.opening import is_served
from holdfast.problem import Problem
from holdfast.quiet import quietly
from holdfast.recipe import Recipe
from holdfast.report import page
from holdfast.report.sources import sources
from holdfast.tier import Tier
from holdfast.values import Attacks


def audit(
    model: str | Path | LM | Recipe | Mapping[str, Any],
    *,
    base: str | Path | None = None,
    twin: str | Path | LM | None = None,
    corpus: str | Path | None = None,
    tier: Tier | None = None,
    attacks: Attacks | None = None,
    controls: Attacks = (),
    harm: str | Eval | None = None,
    second: str | Eval | None = None,
    utility: str | None = None,
    out: str | Path | None = None,
    changes: Sequence[str] = (),
    processes: int | None = None,
    executor: Executor = "local",
    gpus_per_cell: float | None = None,
    keep_answers: bool = False,
    keep_weights: bool = False,
    i_will_guard_broken_weights: bool = False,
    progress: bool = True,
    **settings: Any,
) -> Audited:
    """Attack a checkpoint, or run a recipe; judge what breaks; write `verdict.json` and the page.

    What is finished is never done again: after an interruption the same call goes on, and once all is done it reads.

    Args:
        model: a checkpoint's folder, a hub id, a GGUF file, an address; or a recipe: a TOML file, its content or the record.
        base: the checkpoint from before its alignment.
        twin: the same model without its hardening. Without it nothing can be said but whether the model broke.
        corpus: JSONL of prompts, or a policy; looked for in the checkpoint's folder and beside it unless given.
        tier: whose attacks to run; `smoke` unless attacks are given.
        attacks: more attacks, or these alone: values, or names of methods, whose classes lie in files.
        controls: attacks that must not break anything, as `Noise()`.
        harm: who judges harm, a name or a value.
        second: another judge of the same answers.
        utility: how benign answers are judged.
        out: folder of the run; runs/NAME unless given.
        changes: values to change, as `attacks.0.learning_rate=5e-5`.
        processes: hardenings, and then cells, at a time; one a core unless given.
        executor: `local`, or `ray`.
        gpus_per_cell: with `ray`.
        keep_answers: keep the answers of broken models in the records.
        keep_weights: keep attacked weights; for anything but an organism this wants the next argument too.
        i_will_guard_broken_weights: you know that `keep_weights` writes out models whose safety was undone.
        progress: tell how far it is: on the error stream, in a notebook in one line that changes.
        settings: other keys of a recipe, as `seeds=[0, 1, 2]`.

    Raises:
        Problem: something cannot be used; nothing is left half-written.
    """
    own = {
        "base": base,
        "twin": twin,
        "corpus": corpus,
        "tier": tier,
        "attacks": attacks,
        "harm": harm,
        "second": second,
    }
    given = own | {"controls": controls or None, "utility": utility}
    chosen = _recipe(model, {key: value for key, value in given.items() if value is not None}, tuple(changes), settings)
    if processes is not None and processes < 1:
        raise Problem(f"processes={processes}: nothing would ever run; give 1 or more")
    auditing.refuse_unguarded(chosen, keep_weights, i_will_guard_broken_weights)
    folder = Path(out) if out is not None else Path("runs") / chosen.name
    console = _console(progress)
    with _undisturbed():
        for missing in chosen.not_run:
            teller(console)(f"not run: {missing}")
        done = auditing.run(chosen, folder, console, processes, keep_answers, keep_weights, executor, gpus_per_cell)
    dossier = verdict.write(done)
    page.write(dossier, folder / "report.html", sources=sources(done))
    return Audited(folder, dossier)


def harden(
    defense: str | Defense,
    model: str | Path | LM,
    *,
    out: str | Path,
    base: str | Path | None = None,
    corpus: str | Path | None = None,
    template: Template = "chat",
    progress: bool = True,
    **settings: Any,
) -> Path:
    """Harden a checkpoint into a new folder, in this process; returns the folder, an ordinary checkpoint.

    Args:
        defense: a value, or the name of a defense or the path of its file, which then takes `settings`.
        model: a checkpoint's folder, or a hub id.
        out: after an interruption the same call goes on from what was saved.
        base: the checkpoint from before its alignment; needed by defenses that read it.
        corpus: JSONL of prompts, or a policy; needed by defenses that train.
        template: how prompts are put: the tokenizer's chat template, or plain.
        progress: tell what the defense tells: on the error stream, in a notebook in one line that changes.

    Raises:
        Problem: something cannot be used; no checkpoint is left half-written.
    """
    if isinstance(defense, str):
        name = values.stem(defense)
        chosen: Defense = make("defenses", defense, f"harden, {defense}", **settings)
    else:
        name, chosen = type(defense).__name__.lower(), defense
        if settings:
            raise Problem(f"harden: {min(settings)!r} is given beside a defense, which has its settings; put it there")
        if not isinstance(chosen, Defense):
            raise Problem(f"{defense!r}: no Defense; give the name of one, or a value as TAR(steps=100)")
    places = _folder(model), Path(out), _folder(base) if base else None, Path(corpus) if corpus else None
    with _undisturbed():
        say = teller(_console(progress))
        one_hardening.harden(chosen, name, *places, Drive(template=template), say)
    return Path(out)


def _recipe(model: Any, given: dict[str, Any], changes: tuple[str, ...], settings: dict[str, Any]) -> Recipe:
    """The recipe given, or one for the model given."""
    whole = isinstance(model, (Recipe, Mapping)) or str(model).endswith(".toml")
    if not whole:
        return _for_model(_folder(model), given, changes, settings)
    if given:
        raise Problem(f"audit: a recipe says itself what is audited; leave out {min(given)}")
    if isinstance(model, (Recipe, Mapping)):
        content = recipe.dump(model) if isinstance(model, Recipe) else {**model}
        return recipe.resolved(content | settings, Path("recipe"), changes)
    if settings:
        raise Problem(f"audit: {min(settings)!r} is given beside a recipe's file; write it there, or in `changes`")
    return recipe.load(Path(model), changes)


def _for_model(model: str, given: dict[str, Any], changes: tuple[str, ...], settings: dict[str, Any]) -> Recipe:
    level: Tier | None = given.get("tier") or (None if "attacks" in given else "smoke")
    base, twin = (_folder(given[key]) if key in given else None for key in ("base", "twin"))
    corpus = Path(given["corpus"]) if "corpus" in given else None
    content = tier.asked(level or "audit", model, base, twin, corpus, utility=given.get("utility"))
    for key in ("harm", "second"):
        if key in given:
            name, own = values.named(given[key], "evals")
            content[key] = {"method": name} | own
    content |= {"attacks": [], **(tier.read(level) if level else {}), **settings}
    rates = 1 if is_served(model) or not level else tier.width(locate(model))
    added = [*values.entries(given.get("attacks", ()))]
    added += values.entries(given.get("controls", ()), negative_control=True)
    content["attacks"] = values.distinct([*tier.with_rates(content["attacks"], rates), *added])
    chosen = recipe.resolved(content, Path("audit"), changes)
    hand = policy.prompts(Path(content["corpus"])).hand("attacker")
    weights = not any(is_served(one) for one in (model, twin) if one)
    for entry in chosen.attacks[len(chosen.attacks) - len(added) :]:
        if lacks := tier.lacking(entry.build(), base is not None, hand, weights):
            raise Problem(f"attack {entry.name!r}: needs {' and '.join(lacks)}, which this audit has not; leave it out")
    return tier.possible(chosen, base is not None, hand, weights)


def _folder(model: str | Path | LM) -> str:
    """The name of a checkpoint. Audits and hardenings begin from what lies in a folder, not from what a process holds."""
    if not isinstance(model, LM):
        return str(model)
    if model.kept is not None or model.displacement()[1]:
        raise Problem(
            f"{model.folder}: the model in memory is not what lies there; lm.save(FOLDER), then name that folder"
        )
    return str(model.folder)


def _console(progress: bool) -> Console:
    if not progress:
        return Console(quiet=True)
    if notebook.here():
        return Console(file=notebook.Status(), force_terminal=False, force_jupyter=False, width=120, highlight=False)
    return Console(stderr=True, highlight=False)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """The caller's threads and chance are as before; processes know nothing of the caller's script."""
    threads, state, table = torch.get_num_threads(), random.getstate(), numpy.random.get_state()
    try:
        with quietly(), torch.random.fork_rng(), processes.apart():
            yield
    finally:
        torch.set_num_threads(threads)
        random.setstate(state)
        numpy.random.set_state(table)
