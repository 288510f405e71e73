"""The strongest adversary: settings searched on half of the judge's prompts, and what was found audited on the others.

The winner and two runners-up of other settings run again with fresh seeds, on the subject and on its twin, as an ordinary audit;
only that is a verdict. `search.json` beside it holds the optimistic numbers, and how far the search came.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from holdfast import auditing, convergence, disk, policy, prepare, recipe, space, tier
from holdfast import processes as working
from holdfast.checkpoint import locate
from holdfast.display import shown
from holdfast.lm import LM
from holdfast.problem import Problem
from holdfast.recipe import Recipe
from holdfast.record import Found
from holdfast.run import Run
from holdfast.sampling import Sampler
from holdfast.trials import SEEDS, Leader, Plan, Trials, attack, text

CONTROLS = ({"name": "noise", "method": "noise", "negative_control": True},)
"""What the confirming audit runs beside what was found."""


def plan(
    what: str,
    budget: float,
    seed: int,
    model: str,
    base: str | None = None,
    twin: str | None = None,
    corpus: Path | None = None,
    harm: str | None = None,
    second: str | None = None,
    changes: tuple[str, ...] = (),
) -> Plan:
    """A search on a checkpoint. Arguments as `tier.audit` and `space.load`; `changes` are of the space.

    Raises:
        Problem: something given cannot be used.
    """
    if not budget > 0:
        raise Problem(f"--budget {budget:g}: nothing would be tried; give more than 0")
    if not 0 <= seed < 2**31 // SEEDS:
        raise Problem(f"--seed {seed}: give a number from 0 to {2**31 // SEEDS - 1}")
    content = tier.asked(f"search-{Path(what).stem}", model, base, twin, corpus, harm, second)
    hand = policy.prompts(Path(content["corpus"])).hand("attacker")
    found, left_out = space.load(what, tier.width(locate(model)), base is not None, hand, changes)
    if own := {"subjects", "attacks", "corpus", "prompts"} & found.audit.keys():
        raise Problem(f"space of {found.method}, audit: {min(own)!r} is the search's own; leave it out")
    content |= found.audit | {"prompts": "searched", "attacks": [attack(found, "searched", {})]}
    return Plan(recipe.resolved(content, Path(f"search of {what}")), found, tuple(left_out), budget, seed)


def run(chosen: Plan, folder: Path, console: Console, processes: int | None = None) -> Run:
    """Search, then audit what was found on fresh prompts with fresh seeds. Whatever is done already is not done again.

    Raises:
        Problem: the folder holds something else, something cannot be used, too many trials failed, or none kept the utility.
    """
    torch.set_num_threads(1)
    with disk.explained(folder):
        _refuse_another(chosen, folder)
    prepare.look_over(chosen.recipe)
    workers = processes or (1 if torch.cuda.is_available() else os.cpu_count() or 1)
    with disk.alone(disk.private(folder)):
        folder.chmod(0o700)
        _begin(chosen, folder)
        own = [] if chosen.space.method.endswith(".py") else [f"holdfast.attacks.{chosen.space.method}"]
        working.prepare(["holdfast.warm", "holdfast.watched", *own])
        with shown(console, folder, workers) as board:
            board.doing("searching")
            trials = Trials(chosen, folder / "search", board, workers)
            trials.explore(Sampler(chosen.space, chosen.seed))
        winners = [one for one in trials.leaders() if one.point.missing <= 0]
        disk.write(folder / "search.json", text(_facts(chosen, trials, winners)))
    if not winners:
        raise Problem(f"{folder}: no trial kept the utility asked for; widen the space, or spend a larger --budget")
    return auditing.run(_confirming(chosen, trials, winners), folder, console, processes)


def confirmed(run: Run) -> list[str]:
    """What the audit says of what the search found, beside what the search said; also written to `search.json`."""
    facts, verdicts = run.read("search.json"), run.read("verdict.json")["verdicts"]
    lines = []
    for winner in facts["winners"]:
        of = next(one for one in verdicts if (one["subject"], one["attack"]) == (facts["subject"], winner["attack"]))
        said, harm = winner["found"]["harm"], of["harm"]
        bias = said - harm["value"] if harm else None
        winner |= {"confirmed": harm, "confirmed_utility": of["utility"], "selection_bias": bias}
        fresh = (
            f"{harm['value']:.2f} [{harm['low']:.2f}, {harm['high']:.2f}]"
            if harm
            else "that no model was left to judge"
        )
        told = f"{winner['attack']}: the search said {said:.2f}, fresh seeds and prompts say {fresh}"
        lines.append(f"{told}: selection bias {bias:+.2f}" if harm else told)
    run.write("search.json", facts)
    return lines


def _confirming(chosen: Plan, trials: Trials, winners: Sequence[Leader]) -> Recipe:
    """The audit of what was found, on fresh prompts with the recipe's own seeds."""
    entries = [
        attack(chosen.space, f"found-{rank}", one.trial.chosen) | {"found": _found(one, rank, trials).model_dump()}
        for rank, one in enumerate(winners, 1)
    ]
    content = recipe.dump(chosen.recipe) | {"prompts": "fresh", "attacks": [*entries, *CONTROLS]}
    return recipe.resolved(content, Path("search"))


def _found(one: Leader, rank: int, trials: Trials) -> Found:
    position = one.trial.looks[one.point.look].cost.position
    searched = trials.plan.recipe.subjects[-1].name
    facts = {"harm": one.point.harm, "utility": one.point.utility, "at": position, "seeds": one.seeds}
    tried = sum(other.status != "failed" for other in trials.done)
    return Found(subject=searched, rank=rank, trials=tried, flops=trials.spent, **facts)


def _begin(chosen: Plan, folder: Path) -> None:
    """Write down what is searched, or make sure that it is what was begun."""
    path, now = folder / "search/plan.json", text(_identity(chosen))
    if not path.is_file():
        disk.write(path, now)
    elif path.read_text(encoding="utf-8") != now:
        raise Problem(f"{folder}: holds another search; choose another --out or delete that folder")


def _refuse_another(chosen: Plan, folder: Path) -> None:
    ours = (folder / "search/plan.json").is_file()
    if not ours and folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise Problem(f"{folder}: not empty, and not a search's folder; choose another --out")


def _identity(chosen: Plan) -> dict[str, Any]:
    """What a trial's result depends on, but for the budget, which may be raised later."""
    subject, twin = chosen.recipe.subjects[-1], chosen.recipe.subjects[0]
    corpus = Path(chosen.recipe.corpus or "")
    return {
        "recipe": recipe.dump(chosen.recipe),
        "space": chosen.space.model_dump(mode="json"),
        "seed": chosen.seed,
        "corpus": policy.digest(corpus),
        "weights": [
            LM.load(one.model or "", drive=chosen.recipe.drive, device="cpu").hash() for one in (subject, twin)
        ],
        "versions": prepare.versions(),
    }


def _facts(chosen: Plan, trials: Trials, winners: Sequence[Leader]) -> dict[str, Any]:
    """`search.json`: the optimistic numbers, and how far the search came."""
    judge, done = (
        policy.prompts(Path(chosen.recipe.corpus or "")).hand("judge").asked(chosen.recipe.prompts),
        trials.done,
    )
    return {
        "attack": chosen.space.method,
        "subject": chosen.recipe.subjects[-1].name,
        "seed": chosen.seed,
        "prompts": {kind: len(judge.of(kind, split="test")) for kind in ("restricted", "benign")},
        "utility_floor": chosen.recipe.utility_floor,
        "cost": {
            "unit": "floating-point operations of training and of answering the judge; a failed trial's are not counted",
            "budget": chosen.budget * trials.whole,
            "spent": trials.spent,
            "whole_trial": trials.whole,
        },
        "trials": {status: sum(one.status == status for one in done) for status in ("done", "stopped", "failed")},
        "repetitions": sum(map(len, trials.again.values())),
        "failures": [{"trial": one.number, "reason": one.reason} for one in done if one.status == "failed"],
        "left_out": chosen.left_out,
        "winners": [
            {"attack": f"found-{rank}", "trial": one.trial.number, "settings": one.trial.chosen}
            | {"found": _found(one, rank, trials).model_dump()}
            for rank, one in enumerate(winners, 1)
        ],
        "explored": convergence.explored(chosen.space, done).model_dump(),
        "space": chosen.space.model_dump(mode="json"),
    }
