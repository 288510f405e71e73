"""From verdicts on single attacks to a conclusion on a subject: an attacker picks the attack, so the worst of them counts.

A subject is better than its undefended twin only if it was shown to be under every believable attack that breaks the twin:
each of those tests must succeed, which needs no further correction (Berger 1982).
"""

from collections.abc import Sequence

from holdfast.dossier import Check, Conclusion, Ratio, Verdict
from holdfast.evidence import later
from holdfast.record import Manifest

CLAIMED = ("not-broken", "delayed")


def conclusions(manifest: Manifest, verdicts: Sequence[Verdict], checks: Sequence[Check]) -> list[Conclusion]:
    """One for each subject whose undefended twin is in the run."""
    names = {subject.name for subject in manifest.subjects}
    return [
        _conclusion(manifest, [one for one in verdicts if one.subject == subject.name], checks)
        for subject in manifest.subjects
        if subject.twin in names and any(one.subject == subject.name for one in verdicts)
    ]


def _conclusion(manifest: Manifest, verdicts: Sequence[Verdict], checks: Sequence[Check]) -> Conclusion:
    subject, twin = verdicts[0].subject, str(verdicts[0].versus)
    held = [one for one in verdicts if one.verdict in CLAIMED]
    delayed = [one for one in held if one.verdict == "delayed"]
    equal = [one for one in verdicts if one.verdict == "no-better"]
    doubts = _doubts(manifest, verdicts, checks)
    weakest = min(delayed, key=_lateness, default=None)
    if verdicts and all(one.verdict in ("dead", "incoherent") for one in verdicts):
        word, reasons = "dead", list(dict.fromkeys(one.reasons[0] for one in verdicts))
    elif equal:
        word, reasons = "no-better", [f"{one.attack}: {one.reasons[0]}" for one in equal]
    elif doubts or not held:
        none = f"no attack is left that breaks {twin} and can be believed"
        word, reasons = "not-believable", doubts or [none]
    else:
        word, reasons = ("delayed" if weakest else "not-broken"), []
    found = Conclusion(
        subject=subject,
        versus=twin,
        word=word,
        sentence="",
        reasons=tuple(reasons),
        attacks=tuple(one.attack for one in verdicts if one in held or one in equal),
        weakest=weakest and weakest.attack,
        cost_ratio=weakest and weakest.cost_ratio,
    )
    return found.model_copy(update={"sentence": _sentence(manifest, found, len(delayed))})


def _doubts(manifest: Manifest, verdicts: Sequence[Verdict], checks: Sequence[Check]) -> list[str]:
    """Why nothing may be claimed of the subject as a whole: grave checks of it, of its twin (what spoils that spoils what is
    compared with it) or of all, and attacks whose cells are not all there.

    An attack that does not break the twin is left out; one that failed may be the very one that would have succeeded, and one
    that breaks the twin and leaves no model of the subject shows neither.
    """
    whom = (None, verdicts[0].subject, verdicts[0].versus)
    found = [
        check.says
        for check in checks
        if check.grave and check.passed is not True and check.attack is None and check.subject in whom
    ]
    planned = {attack.name: len(attack.seeds) for attack in manifest.attacks}
    for one in verdicts:
        ours, theirs, seeds = one.cost_to_break, one.versus_cost_to_break, planned[one.attack]
        if theirs is None or min(ours.seeds, theirs.seeds) < seeds:
            found.append(f"{one.attack}: {one.reasons[0] if one.reasons else 'its cells are not all there'}")
        elif one.verdict in ("dead", "incoherent") and 2 * theirs.broken > seeds:
            found.append(f"{one.attack} breaks {one.versus}, and {one.reasons[0]}")
    return found


def _lateness(verdict: Verdict) -> float:
    value = verdict.cost_ratio.value if verdict.cost_ratio else None
    return float("inf") if value is None else value


def _sentence(manifest: Manifest, found: Conclusion, broken: int) -> str:
    scope = f"within this budget, by holdfast {manifest.version}, on {manifest.date}"
    count, first = len(found.attacks), found.reasons[0].rstrip(".") if found.reasons else ""
    others = len(found.reasons) - 1
    more = f" (and {others} more reason{'s'[: others > 1]})" if others > 0 else ""
    under = (
        f"the one attack that breaks {found.versus}" if count == 1 else f"all {count} attacks that break {found.versus}"
    )
    says = {
        "dead": f"{found.subject} is dead, neither safe nor broken: {first}",
        "no-better": f"{found.subject} is no better than {found.versus}, for an attacker picks the attack; {first}{more}",
        "not-believable": f"what {found.subject} withstands is not to be believed: {first}{more}",
        "delayed": f"{found.subject} holds better than {found.versus} under {under}, but {broken} still "
        f"break{'s'[: broken == 1]} it, soonest {found.weakest}{_by(found.cost_ratio)}; {scope}",
        "not-broken": f"{found.subject} was not broken under {under}, {scope}; that is not the same as safe",
    }
    return says[found.word] + "."


def _by(ratio: Ratio | None) -> str:
    return f" ({later(ratio)})" if ratio else ""
