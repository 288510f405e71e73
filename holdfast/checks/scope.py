"""What a check is about: the attacks that claim to break, subjects beside their twins, and how doubts become checks."""

from collections.abc import Sequence
from typing import NamedTuple

from holdfast.dossier import Check
from holdfast.evidence import Evidence, breaks_safety
from holdfast.record import AttackFacts, SubjectFacts


class Doubt(NamedTuple):
    """Why something may not be believed."""

    says: str
    subject: str | None = None
    """Whom it is about; None: everybody."""
    attack: str | None = None
    """Under which attack; None: under all."""
    passed: bool | None = False
    """None: the check could not be made."""


def checked(
    name: str, doubts: Sequence[Doubt], fine: str, subject: SubjectFacts | None = None, grave: bool = True
) -> list[Check]:
    """One check for each doubt, named for what it is about; one that says `fine`, of `subject`, if there is none."""
    passed = Doubt(fine, subject.name if subject else None, passed=True)
    return [
        Check(
            name=f"{name}: {about}" if (about := " under ".join(filter(None, (one.subject, one.attack)))) else name,
            passed=one.passed,
            says=one.says,
            subject=one.subject,
            attack=one.attack,
            grave=grave,
        )
        for one in doubts or [passed]
    ]


def trains(attack: AttackFacts) -> bool:
    """Whether the attack is a fine-tuning that claims to break safety."""
    return attack.axis == "steps" and attack.family == "fine-tuning" and breaks_safety(attack)


def defended(evidence: Evidence) -> list[tuple[SubjectFacts, SubjectFacts]]:
    """Every subject that has a twin in this run, with its twin."""
    pairs = [(one, evidence.subjects.get(one.twin or "")) for one in evidence.manifest.subjects]
    return [(subject, twin) for subject, twin in pairs if twin]
