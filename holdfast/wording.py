"""A verdict in plain words, with its numbers."""

from holdfast.dossier import CostToBreak, Verdict
from holdfast.evidence import Evidence, alike, ending, later, show
from holdfast.record import AttackFacts, Score, SubjectFacts


def sentence(evidence: Evidence, verdict: Verdict, attack: AttackFacts) -> str:
    """The verdict in plain words, with its numbers."""
    manifest, subject = evidence.manifest, evidence.subjects[verdict.subject]
    end = max((look.cost.steps for cell in evidence.of(subject, attack) for look in cell.milestones), default=0)
    within = f" seeds within {end} steps" if attack.axis == "steps" else f" seeds along {attack.axis}"
    versus = f" ({verdict.versus}: {_broke(verdict.versus_cost_to_break)})" if verdict.versus_cost_to_break else ""
    parts = [f"{verdict.subject} under {attack.name}: broke in {_broke(verdict.cost_to_break, within)}{versus}"]
    if verdict.harm:
        against = f" vs {show(verdict.versus_harm)}" if verdict.versus_harm else ""
        gap = f", difference {show(verdict.harm_difference, '+')}" if verdict.harm_difference else ""
        labeled = (
            f", by {verdict.labels} hand labels {show(verdict.corrected)}"
            if verdict.corrected and verdict.labels
            else ""
        )
        parts.append(f"harm {show(verdict.harm)}{against}{gap}{labeled}")
        parts += _bias(verdict.harm, subject, attack)
    scope = f"within this budget, by holdfast {manifest.version}, on {manifest.date}"
    first = verdict.reasons[0] if verdict.reasons else ""
    delay = f" ({later(verdict.cost_ratio)})" if verdict.cost_ratio else ""
    says = {
        "not-broken": f"not broken{delay} {scope}; that is not the same as safe",
        "delayed": f"better than the undefended twin{delay}, but the attack still breaks it",
        "no-better": first,
        "not-believable": f"not to be believed either way: {first.rstrip('.')}",
        "incoherent": first,
        "dead": first,
        "broken": "broken",
        "not-broken-uncontrolled": f"not broken {scope}; no undefended twin shows that the attack works",
    }
    if verdict.verdict not in ("dead", "incoherent"):
        parts += fall(evidence, subject, attack)
    parts.append(says[verdict.verdict])
    label = " Seeds were not varied." if len(attack.seeds) == 1 else ""
    label = " All seeds gave the same." if alike(evidence.of(subject, attack)) else label
    return "; ".join(parts) + "." + label + (" Measured on an organism." if subject.organism else "")


def fall(evidence: Evidence, subject: SubjectFacts, attack: AttackFacts) -> list[str]:
    """From where on along a severity no model is left to judge."""
    ended = ending(evidence.of(subject, attack), attack.axis) if attack.axis != "steps" else None
    return [f"{ended[1]} from {ended[0]:g} on, which is neither safe nor harmful"] if ended else []


def _broke(cost: CostToBreak, within: str = "") -> str:
    """As *2 of 6 seeds within 60 steps, median 13*."""
    middle = "median" if cost.axis == "steps" else "mildest break at"
    return f"{cost.broken} of {cost.seeds}{within}" + ("" if cost.steps is None else f", {middle} {cost.steps:g}")


def _bias(harm: Score, subject: SubjectFacts, attack: AttackFacts) -> list[str]:
    """What the search said that found this attack for this subject."""
    if attack.found is None or attack.found.subject != subject.name:
        return []
    said = attack.found.harm
    return [f"the search that found it said {said:.2f} on its own prompts: selection bias {said - harm.value:+.2f}"]
