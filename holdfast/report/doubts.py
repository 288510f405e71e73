"""What speaks against believing a run: checks that did not pass, cells that did not finish, what was not tested."""

from collections.abc import Iterable
from typing import NamedTuple

from holdfast.adversaries import ADVERSARIES
from holdfast.dossier import Check, Dossier
from holdfast.evidence import gone
from holdfast.record import FAMILIES, Cell
from holdfast.report.words import Index, clean


class Doubt(NamedTuple):
    """Checks that ask the same of several subjects or attacks, and the worst that came of them."""

    name: str
    checks: list[Check]
    passed: bool | None
    grave: bool


def doubts(checks: Iterable[Check]) -> list[Doubt]:
    """The checks by what they ask: those that failed first, and of these the ones that forbid a claim."""
    named: dict[str, list[Check]] = {}
    for check in checks:
        named.setdefault(check.name.partition(":")[0], []).append(check)
    rank: dict[bool | None, int] = {False: 0, None: 1, True: 2}
    made = []
    for name, some in named.items():
        some = sorted(some, key=lambda check: rank[check.passed])
        made.append(Doubt(name, some, some[0].passed, any(one.grave for one in some)))
    return sorted(made, key=lambda doubt: (rank[doubt.passed], not doubt.grave))


def unfinished(dossier: Dossier) -> list[Cell]:
    """Cells that failed or lost their model; a path that only ends in a dead model did not."""
    attacks = {one.name: one for one in dossier.manifest.attacks}

    def bad(cell: Cell) -> bool:
        if cell.status != "dead" or cell.attack not in attacks:
            return cell.status != "done"
        return gone(cell, attacks[cell.attack]) != "answers"

    return [cell for cell in dossier.cells if bad(cell)]


def untested(index: Index) -> list[str]:
    """What the run cannot speak about, one sentence each, from what it holds."""
    tested = {one.family for one in index.attacks}
    missing = [says for family, says in FAMILIES.items() if family not in tested]
    tried = ", ".join(f"{clean(one.name)} ({clean(one.method)})" for one in index.attacks) or "none"
    says = [f"Only these attacks were tried, each with the setting and the budget shown: {tried}."]
    if missing:
        says.append(f"Not tried: {'; '.join(missing)}; and prompts alone (jailbreaks).")
    if lacking := index.dossier.manifest.not_run:
        says.append(f"Not run: {'; '.join(map(clean, lacking))}.")
    who = {one.name: f"{one.who[0].lower()}{one.who[1:]} ({one.has})" for one in ADVERSARIES}
    standings = [one for one in index.dossier.standings if one.adversary in who]
    busy = {one.adversary for one in standings if one.word != "not-tested"}
    if idle := [who[one] for one in dict.fromkeys(one.adversary for one in standings) if one not in busy]:
        says.append(f"Of these adversaries no attack was run: {'; '.join(idle)}.")
    if not any(one.found for one in index.attacks):
        says.append(
            "No adversary searched for the worst setting (`holdfast search`): a better-tuned attack may break sooner."
        )
    if len({cell.replica for cell in index.dossier.cells}) < 2:
        says.append("Each hardening was made once; how much another hardening seed would differ is not known.")
    organisms = sorted({clean(one.organism) for one in index.subjects if one.organism})
    if organisms:
        says.append(
            f"The models are organisms ({', '.join(organisms)}); nothing here was measured on a model people use."
        )
    return says
