"""Several runs on one page: their defenses beside each other, where the runs measured the same thing; the others kept apart.

Costs to break are compared over the attacks that all runs of a group made with the same settings: whoever was attacked less would
seem to hold longer. Reads records only.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from holdfast import disk
from holdfast.adversaries import ADVERSARIES
from holdfast.dossier import Conclusion, Dossier, Standing, Verdict
from holdfast.problem import Problem
from holdfast.record import AttackFacts, Manifest, Score, SubjectFacts
from holdfast.report import page, pareto, words
from holdfast.report.figures import Panel
from holdfast.report.looks import Look, looks
from holdfast.report.pareto import Price
from holdfast.report.words import Index


class Entry(NamedTuple):
    """One run."""

    name: str
    folder: str
    index: Index

    @property
    def manifest(self) -> Manifest:
        return self.index.dossier.manifest


class Member(NamedTuple):
    """One subject of one run, as the page shows it."""

    entry: Entry
    facts: SubjectFacts
    look: Look
    conclusion: Conclusion | None
    utility: Score | None
    over_refusal: Score | None
    gap: Verdict | None
    """Any verdict: it holds the differences from the twin before any attack."""
    price: Price | None
    """Of the cheapest attack that all made; None where none was."""
    frontier: bool
    standings: dict[str, Standing]
    verdicts: list[Verdict | None]
    """One for each attack that all made."""


class Group(NamedTuple):
    """Runs that may be set beside each other."""

    entries: list[Entry]
    apart: list[str]
    """Why they are kept from the first run's group; empty for that."""
    shared: list[AttackFacts]
    """Attacks that all made with the same settings."""
    left_out: list[str]
    """Attacks that only some made."""
    members: list[Member]
    panel: Panel | None
    unit: str


def write(runs: Sequence[tuple[str, Dossier]], path: Path) -> list[str]:
    """Write the page of several runs, each its folder and what is said of it.

    Returns:
        What was set beside what, a line each.

    Raises:
        Problem: a run is named twice, or `path` cannot be written.
    """
    folders = [str(Path(folder).resolve()) for folder, _ in runs]
    if twice := next((one for number, one in enumerate(folders) if one in folders[:number]), None):
        raise Problem(f"{twice}: named twice; name each run once")
    found = groups(runs)
    disk.write(path, render(found).encode("utf-8", "replace"))
    said = [f"beside each other: {', '.join(one.name for one in found[0].entries)}"]
    for group in found[1:]:
        said.append(f"kept apart: {', '.join(one.name for one in group.entries)}: {'; '.join(group.apart)}")
    return said


def render(found: Sequence[Group]) -> str:
    """The page as HTML."""
    panels = [group.panel for group in found if group.panel]
    shown = {
        "groups": found,
        "adversaries": ADVERSARIES,
        "standing_of": lambda member, who: member.standings.get(who.name),
        "breaks": lambda member, attack, verdict: words.break_words(
            verdict, member.entry.index.reach(attack, member.facts)
        ),
        "said": pareto.said,
    }
    return page.whole("several.html.jinja", panels, shown)


def groups(runs: Sequence[tuple[str, Dossier]]) -> list[Group]:
    """The runs by what they measured, the first run's group first."""
    known = [dossier.manifest.name for _, dossier in runs]
    entries = [
        Entry(name if known.count(name) == 1 else Path(folder).name or name, folder, Index(dossier))
        for name, (folder, dossier) in zip(known, runs, strict=True)
    ]
    alike: dict[str, list[Entry]] = {}
    for entry in entries:
        alike.setdefault(json.dumps(_measured(entry), sort_keys=True), []).append(entry)
    made = list(alike.values())
    return [_group(some, made[0][0], number) for number, some in enumerate(made)]


def _measured(entry: Entry) -> dict[str, object]:
    """What must be equal for numbers to be set beside each other, by what it is called in words."""
    manifest = entry.manifest
    twins = {one.twin for one in manifest.subjects if one.twin} or {one.name for one in manifest.subjects}
    return {
        "other prompts": manifest.corpus.get("hash"),
        "other utility tasks": manifest.corpus.get("items"),
        "another judge of harm": [manifest.harm, manifest.judges.get("harm")],
        "another threshold or utility floor": [manifest.threshold, manifest.utility_floor],
        "another undefended twin": sorted(one.hash for one in manifest.subjects if one.name in twins),
    }


def _group(entries: list[Entry], first: Entry, number: int) -> Group:
    ours, theirs = _measured(entries[0]), _measured(first)
    shared, left_out = _shared(entries)
    clocks = [one for one in shared if one.axis == "steps"]
    subjects = [(entry, facts) for entry in entries for facts in _shown(entry, entry is entries[0])]
    unit = pareto.unit([(entry.index, facts) for entry, facts in subjects], clocks)
    prices = [pareto.cheapest(entry.index, facts, clocks, unit) for entry, facts in subjects]
    utilities = [point.utility if (point := entry.index.before(facts)) else None for entry, facts in subjects]
    best = pareto.frontier(utilities, prices)
    styles = looks([facts for _, facts in subjects])
    members = [
        Member(
            entry=entry,
            facts=facts,
            look=look,
            conclusion=entry.index.conclusion(facts),
            utility=utility,
            over_refusal=point.over_refusal if (point := entry.index.before(facts)) else None,
            gap=next((one for one in entry.index.dossier.verdicts if one.subject == facts.name), None),
            price=price,
            frontier=turn in best,
            standings={one.adversary: one for one in entry.index.dossier.standings if one.subject == facts.name},
            verdicts=[entry.index.verdict(facts, attack) for attack in shared],
        )
        for turn, ((entry, facts), look, utility, price) in enumerate(
            zip(subjects, styles, utilities, prices, strict=True)
        )
    ]
    names = [_named(one, entries) for one in members]
    panel = pareto.panel(names, styles, utilities, prices, best, unit, f"utility-and-cost-to-break-{number + 1}")
    return Group(entries, [what for what in ours if ours[what] != theirs[what]], shared, left_out, members, panel, unit)


def _shown(entry: Entry, first: bool) -> list[SubjectFacts]:
    """Defenses and their controls; the undefended twin, which is the same in all, of the first run only."""
    subjects = entry.index.subjects
    alone = all(words.role(one) == "undefended" for one in subjects)
    return [one for one in subjects if first or alone or words.role(one) != "undefended"]


def _shared(entries: Sequence[Entry]) -> tuple[list[AttackFacts], list[str]]:
    made = [{_key(one): one for one in entry.index.attacks} for entry in entries]
    shared = [one for key, one in made[0].items() if all(key in other for other in made)]
    keys = {_key(one) for one in shared}
    return shared, list(dict.fromkeys(one.name for some in made for key, one in some.items() if key not in keys))


def _key(attack: AttackFacts) -> str:
    return json.dumps([attack.name, attack.method, attack.axis, attack.settings], sort_keys=True, default=str)


def _named(member: Member, entries: Sequence[Entry]) -> str:
    name = words.clean(member.facts.name, 40)
    return name if len(entries) == 1 or words.role(member.facts) == "undefended" else f"{name} · {member.entry.name}"
