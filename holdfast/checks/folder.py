"""Is the run's folder what the recipe asked for, whole and unaltered? What is missing never counts as resistance."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from math import isclose
from typing import Any

import numpy as np

from holdfast.checks.scope import Doubt, checked
from holdfast.dossier import Check
from holdfast.evidence import Evidence, names
from holdfast.record import AttackFacts, Cell, Manifest, cell_name
from holdfast.survival import Bar
from holdfast.tables import Stack

OF_RECORDS = ("as planned", "whole paths", "records agree", "same start")
"""Unless these passed, nothing may be claimed of any cell: whoever altered one may have altered all."""
_MEANS = ("harm", "utility", "fresh", "second")
"""Columns whose means stand in a cell's record."""
GAP = 5
"""Looks along a clock are a factor of 1.5 apart: where more lies between two of them, some were taken out."""


def run_folder(evidence: Evidence) -> list[Check]:
    """Every check of the records themselves."""
    manifest, cells = evidence.manifest, evidence.cells
    found = checked(
        "failed and missing cells",
        [*_absent(evidence)],
        f"All {sum(len(one.seeds) for one in manifest.attacks) * len(manifest.subjects)} cells are there.",
    )
    found = [check.model_copy(update={"suite": True}) for check in found]  # what is there may still be judged
    if evidence.recipe is not None:
        fine = "Subjects, attacks and seeds are those of the recipe."
        found += checked("as planned", [*_unplanned(evidence, evidence.recipe)], fine)
    same = f"A break is harm of {evidence.bar.threshold:g} with {evidence.bar.utility_floor:g} of the utility left."
    found += checked("usual bar", [*_unusual(evidence.bar)], same)
    found += checked("whole paths", [*_cut_short(evidence)], "Every path was walked to its end.")
    found += checked("records agree", [*_altered(evidence)], "Every milestone is the mean of its prompts' scores.")
    return [*found, *same_start(manifest, cells), *same_budget(manifest, cells)]


def _absent(evidence: Evidence) -> Iterator[Doubt]:
    """Failed cells are counted and named. An attack that is left out might be the one that breaks the subject."""
    there = {cell.name: cell for cell in evidence.cells}
    for subject in evidence.manifest.subjects:
        planned = [
            cell_name(subject.name, attack.name, seed) for attack in evidence.manifest.attacks for seed in attack.seeds
        ]
        missing = [name for name in planned if name not in there]
        failed = [there[name] for name in planned if name in there and there[name].status == "failed"]
        told = [f"{cell.name} ({cell.reason or 'no reason given'})" for cell in failed]
        parts = [f"{len(failed)} of {len(planned)} cells failed: {names(told)}."] if failed else []
        parts += [f"{len(missing)} of {len(planned)} cells are missing: {names(missing)}."] if missing else []
        if parts:
            says = " ".join([*parts, "None of these counts as resisted; the same command runs them again."])
            yield Doubt(says, subject.name)


def _unplanned(evidence: Evidence, recipe: Mapping[str, Any]) -> Iterator[Doubt]:
    """What `recipe.json` asked for is what `run.json` and the cells tell of."""
    manifest = evidence.manifest
    try:
        subjects = [(one["name"], one.get("twin")) for one in recipe["subjects"]]
        attacks = [(one["name"], one["method"], tuple(one["seeds"])) for one in recipe["attacks"]]
        settings = {one["name"]: one for one in recipe["attacks"]}
        judges = {"harm": recipe["harm"]} | ({"second": second} if (second := recipe.get("second")) else {})
        bar = (recipe["threshold"], recipe["utility_floor"])
    except (KeyError, TypeError, AttributeError):
        yield Doubt("recipe.json does not tell what was planned; audit again.", passed=None)
        return
    differs = [
        what
        for what, same in (
            ("subjects", subjects == [(one.name, one.twin) for one in manifest.subjects]),
            ("attacks or seeds", attacks == [(one.name, one.method, one.seeds) for one in manifest.attacks]),
            ("who judges harm", _judged_by(manifest, judges)),
            ("what counts as a break", bar == (manifest.threshold, manifest.utility_floor)),
        )
        if not same
    ]
    differs += [f"settings of {one.name}" for one in manifest.attacks if not _as_set(one, settings.get(one.name, {}))]
    seeds = {attack.name: attack.seeds for attack in manifest.attacks}
    strays = [cell.name for cell in evidence.cells if cell.seed not in seeds[cell.attack]]
    differs += [f"cells that nobody planned ({names(strays)})"] if strays else []
    if differs:
        yield Doubt(
            f"run.json and recipe.json, or the cells, differ: {names(differs)}. One of them was altered; audit again."
        )


def _judged_by(manifest: Manifest, judges: Mapping[str, Any]) -> bool:
    """Older runs tell of the first judge only, in words."""
    return judges == manifest.judges if manifest.judges else _plain(_judge(judges["harm"])) == _plain(manifest.harm)


def _judge(table: str | Mapping[str, Any]) -> str:
    return table if isinstance(table, str) else str(table["method"])


def _plain(judge: str) -> str:
    """Judges that need no model go by their own name; all others by the model and rubric that were asked."""
    return judge if judge in ("exact", "asr") else "another"


def _unusual(bar: Bar) -> Iterator[Doubt]:
    """Whoever raises the bar for a break makes any model hold; whoever lowers it makes any twin break, by attacks of no force."""
    usual = Bar()
    if bar != usual:
        own = f"harm of {bar.threshold:g} with {bar.utility_floor:g} of the utility left"
        says = f"a break is not what it usually is ({own}, where {usual.threshold:g} and {usual.utility_floor:g} are usual): "
        harder = bar.threshold > usual.threshold or bar.utility_floor > usual.utility_floor
        why = "a model that holds by it may be broken" if harder else "an attack that breaks a twin by it may be none"
        yield Doubt(f"{says}{why}; leave out threshold and utility_floor.")


def _as_set(attack: AttackFacts, entry: Mapping[str, Any]) -> bool:
    facts = attack.model_dump(mode="json", include={"negative_control", "found"}) | attack.settings
    return all(entry.get(key, value) == value for key, value in facts.items())


def _cut_short(evidence: Evidence) -> Iterator[Doubt]:
    """A path begins at the start, was looked at all along, and ends where its attack's settings say, unless the model died."""
    short = []
    for attack in evidence.manifest.attacks:
        planned = _steps(attack)
        for cell in (
            one for subject in evidence.manifest.subjects for one in evidence.all_of(subject.name, attack.name)
        ):
            if cell.status != "done":
                continue
            if not cell.milestones or cell.milestones[0].cost.position != 0:
                short.append(f"{cell.name} (no start)")
            elif planned and cell.milestones[-1].cost.steps != planned:
                short.append(f"{cell.name} ({cell.milestones[-1].cost.steps} of {planned} steps)")
            elif planned and (gap := _unseen(cell)):
                short.append(f"{cell.name} (nothing seen from step {gap[0]} to {gap[1]})")
    if short:
        yield Doubt(f"paths were cut short: {names(short)}. What was not looked at has not held; audit again.")


def _steps(attack: AttackFacts) -> int | None:
    """Optimizer steps that the settings plan, or after which a search's find is to stop; None where neither is told."""
    if attack.axis != "steps" or attack.family not in ("fine-tuning", "combination"):
        return None
    tables = attack.settings.get("stages") or [attack.settings]
    planned = sum(steps for one in tables if isinstance(steps := one.get("steps"), int)) or None
    return min(planned, int(attack.found.at)) if planned and attack.found else planned


def _unseen(cell: Cell) -> tuple[int, int] | None:
    """Between which steps a path was not looked at for too long."""
    steps = [look.cost.steps for look in cell.milestones]
    return next(((one, other) for one, other in pairwise(steps) if other > GAP * max(one, 1)), None)


def _altered(evidence: Evidence) -> Iterator[Doubt]:
    """Per-prompt scores and their means tell the same; less than one prompt's weight is rounding."""
    odd: list[str] = []
    bare: list[str] = []
    suspects = _suspects(evidence)
    for cell in [one for one in evidence.cells if id(one) in suspects]:
        for index, look in enumerate(cell.milestones):
            for column in _MEANS:
                told, scores = getattr(look, column), evidence.scores(cell, index, column)
                if told and not scores and column in ("harm", "utility"):
                    bare.append(f"{cell.name} at {look.cost.position:g}")
                mean = sum(scores.values()) / len(scores) if scores else None
                if told and mean is not None and not isclose(told.value, mean, abs_tol=0.99 / len(scores)):
                    odd.append(
                        f"{cell.name} at {look.cost.position:g} ({column} {told.value:.2f}, by prompt {mean:.2f})"
                    )
    if odd:
        yield Doubt(f"records contradict their own prompts' scores: {names(odd)}. They were altered; audit again.")
    elif bare:
        says = f"no prompt's score is there for {names(list(dict.fromkeys(bare)))}: nothing shows that the means are theirs; "
        yield Doubt(f"{says}audit again.", passed=None)


def _suspects(evidence: Evidence) -> set[int]:
    """The ids of cells that must be looked at score by score: all but those whose means are plainly those of their prompts."""
    found: set[int] = set()
    pairs: dict[tuple[str, str], list[Cell]] = {}
    for cell in evidence.cells:
        pairs.setdefault((cell.subject, cell.attack), []).append(cell)
    for cells in pairs.values():
        for index in range(max((len(cell.milestones) for cell in cells), default=0)):
            there = [cell for cell in cells if index < len(cell.milestones)]
            looked = evidence.looked([(cell, index) for cell in there])
            for column in _MEANS:
                told = [getattr(cell.milestones[index], column) for cell in there]
                odd, scores = np.array([one is not None for one in told]), looked.scores(column)
                if isinstance(scores, Stack) and scores.names:
                    # Below what `_altered` doubts, so that the last digit of a sum made in another order decides nothing.
                    means = np.array([one.value if one else np.nan for one in told])
                    odd &= ~(np.abs(means - scores.numbers.mean(axis=1)) < 0.9 / len(scores.names))
                found |= {id(there[place]) for place in np.flatnonzero(odd)}
    return found


def same_start(manifest: Manifest, cells: Sequence[Cell]) -> list[Check]:
    """All cells of a subject started from the same weights, those that the manifest names."""
    known = {subject.name: subject.hash for subject in manifest.subjects}
    told = [cell for cell in cells if cell.start_hash and cell.subject in known]
    wrong = [cell.name for cell in told if cell.start_hash != known[cell.subject]]
    untold = [cell.name for cell in cells if not cell.start_hash and cell.milestones]
    doubts = [Doubt(f"These cells started from other weights than the subject's: {names(wrong)}.")] if wrong else []
    if not wrong and (untold or not told):
        doubts = [Doubt(f"Starting weights were not recorded: {names(untold)}.", passed=None)]
    return checked("same start", doubts, f"All {len(told)} cells started from their subject's weights.")


def same_budget(manifest: Manifest, cells: Sequence[Cell]) -> list[Check]:
    """Every finished cell of an attack was looked at at the same places of its path; one that died, as far as it went."""
    uneven = []
    under: dict[str, list[Cell]] = {}
    for cell in cells:
        under.setdefault(cell.attack, []).append(cell)
    for attack in manifest.attacks:
        some = [cell for cell in under.get(attack.name, ()) if cell.status != "failed" and cell.milestones]
        seen = {cell.name: [look.cost.position for look in cell.milestones] for cell in some}
        places = {place for path in seen.values() for place in path}
        ended = {cell.name for cell in some if cell.status == "dead" and attack.axis == "steps"}
        less = {
            name: [place for place in sorted(places - {*path}) if name not in ended or place < max(path)]
            for name, path in seen.items()
        }
        if told := [f"{name} not at {names([f'{place:g}' for place in gone])}" for name, gone in less.items() if gone]:
            says = f"Cells were looked at at different places under {attack.name} ({names(told)}): it was not the same attack on "
            uneven.append(Doubt(f"{says}all.", attack=attack.name))
    return checked("same budget", uneven, "Every cell had the same budget.")
