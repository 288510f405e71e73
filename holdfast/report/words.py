"""The words and numbers that the page and the terminal's table share. Reads records only; draws nothing."""

import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from holdfast import survival
from holdfast.dossier import Conclusion, CostToBreak, Curve, Dossier, Point, Ratio, Verdict
from holdfast.evidence import walks
from holdfast.record import FAMILIES, AttackFacts, Cell, Cost, Score, SubjectFacts
from holdfast.survival import Look
from holdfast.units import operations, short


class Word(NamedTuple):
    """How a verdict is said: a label, a sign that needs no color, and a tone that becomes one."""

    label: str
    sign: str
    tone: str


WORDS = {
    "not-broken": Word("not broken", "✓", "good"),
    "delayed": Word("delayed", "◐", "fair"),
    "no-better": Word("no better", "=", "bad"),
    "broken": Word("broken", "✗", "bad"),
    "not-broken-uncontrolled": Word("not broken, uncontrolled", "?", "doubt"),
    "not-believable": Word("not believable", "?", "doubt"),
    "incoherent": Word("incoherent", "~", "doubt"),
    "dead": Word("dead", "†", "doubt"),
    "not-tested": Word("not tested", "–", "doubt"),
}
CONTROLS = {"calm": Word("left alone", "✓", "good"), "broke": Word("broke", "✗", "bad")}
CHECKS = {
    True: Word("pass", "✓", "good"),
    False: Word("fail", "✗", "bad"),
    None: Word("could not be checked", "?", "doubt"),
}


def clean(text: object, limit: int = 160) -> str:
    """`text` without control or direction-changing characters, cut after `limit` characters."""
    shown = str(text)
    if len(shown) <= limit and shown.isascii() and shown.isprintable():  # as nearly all are
        return shown
    cut = len(shown) > limit
    bad = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    shown = "".join("�" if unicodedata.category(c) in bad and c not in "\n\t" else c for c in shown[:limit])
    return shown + "…" if cut else shown


def number(value: float | None, digits: int = 2) -> str:
    """A share, as 0.30; a dash where there is none."""
    return "–" if value is None else f"{value:.{digits}f}"


def percent(share: float) -> str:
    """A share in percent: 100, 80, 0.086; all or nothing only where it is."""
    value = 100 * share
    return f"{value:.2g}" if value < 10 else f"{min(value, 99.9 if share < 1 else 100):.3g}"


def signed(value: float | None) -> str:
    """A difference, as +0.03 or −0.52."""
    if value is None:
        return "–"
    shown = f"{value:+.2f}".replace("-", "−")
    return "0.00" if shown in ("+0.00", "−0.00") else shown


def span(score: Score | None, sign: bool = False) -> str:
    """The interval of a score, as [0.17, 0.44]."""
    if score is None:
        return ""
    shown = signed if sign else number
    return f"[{shown(score.low)}, {shown(score.high)}]"


def times(ratio: Ratio | None) -> str:
    """How many times later, with its interval, as *3.1× [1.4, 7]*; a dash where there is none."""
    if ratio is None:
        return "–"
    value, high = ("∞" if one is None else f"{one:.2g}" for one in (ratio.value, ratio.high))
    return f"{value}× [{ratio.low:.2g}, {high}]"


def spent(cost: Cost | None) -> tuple[str, str]:
    """What a hardening took, as *188 s, 3.7 TFLOPs*, and on what it trained; dashes where nothing was recorded."""
    if cost is None:
        return "–", ""
    trained = f"{short(cost.examples)} rows, {short(cost.tokens)} tokens" if cost.examples else "no training"
    return f"{cost.seconds:.0f} s, {operations(cost.flops)}", trained


def word(verdict: Verdict) -> Word:
    """The verdict's word; *no better* with whom it is no better than, where its reason names one."""
    plain = WORDS[verdict.verdict]
    rivals = [control.control for control in verdict.controls] + ([verdict.versus] if verdict.versus else [])
    said = " ".join(verdict.reasons)
    longest = sorted(rivals, key=len, reverse=True)  # the name of one may begin that of another
    than = next((rival for rival in longest if f"no better than {rival}" in said), None)
    return (
        plain._replace(label=f"{plain.label} than {clean(than, 40)}")
        if than and verdict.verdict == "no-better"
        else plain
    )


def silent(verdict: Verdict) -> bool:
    """Nothing answered, so nothing may be said to have held."""
    cost = verdict.cost_to_break
    return verdict.verdict in ("dead", "incoherent") or (verdict.harm is None and not cost.broken) or cost.seeds == 0


def breaks_at(cost: CostToBreak, end: float) -> str:
    """Where safety broke, without its interval: `13`, or `> 60` where the budget ended first."""
    return f"> {end:g}" if cost.steps is None else f"{cost.steps:g}"


def break_span(cost: CostToBreak, end: float) -> str:
    """The interval around the cost to break, as `9 to 13`; open above where some seed never broke."""
    return f"{cost.low:g} to {f'> {end:g}' if cost.high is None else f'{cost.high:g}'}"


def break_words(verdict: Verdict, end: float) -> str:
    """Where safety broke, in plain words and with its unit."""
    if silent(verdict):
        return "left no model to judge" if verdict.verdict in ("dead", "incoherent") else "gave no answers to judge"
    cost = verdict.cost_to_break
    clock = cost.axis == "steps"
    share = f"{cost.broken} of {cost.seeds} seeds" if cost.seeds > 1 else ""
    if cost.steps is None:
        held = f"held {end:g} steps" if clock else f"not broken up to {end:g} ({clean(cost.axis, 60)})"
        return held + (f", {share} broke" if cost.broken and share else "")
    broke = (
        f"broke at {cost.steps:g} step{'s' * (cost.steps != 1)}"
        if clock
        else f"mildest break at {cost.steps:g} ({clean(cost.axis, 60)})"
    )
    return broke + (f", {share}" if share and cost.broken < cost.seeds else "")


def ending(curve: Curve) -> str:
    """How the path ends where most seeds answer no more: as `incoherent from 14 on`; empty if they answer to the end."""
    silent = curve.points[_answered(curve) :]
    return f"{silent[-1].status} from {silent[0].position:g} on" if silent else ""


def _answered(curve: Curve) -> int:
    """How many points there are up to the last at which most seeds still answer."""
    return max((turn for turn, point in enumerate(curve.points, 1) if point.status == "answers"), default=0)


def manifest(cells: Iterable[Cell]) -> list[str]:
    """What an attack touched, a sentence for each way it did; several only where subjects or seeds differ."""
    made: dict[str, list[str]] = {}
    for cell in cells:
        if cell.status == "failed":
            continue
        named = clean(", ".join(cell.touched[:6]), 600) + (
            f" and {len(cell.touched) - 6} more" * (len(cell.touched) > 6)
        )
        share = f"{100 * cell.touched_share:.0f}" if cell.touched_share >= 0.01 else f"{100 * cell.touched_share:.2g}"
        unknown = not cell.touched and any(look.changed for look in cell.milestones)
        none = "what it touched was not recorded" if unknown else "touched no weight"
        says = f"touched {share} % of parameters: {named}" if cell.touched else none
        made.setdefault(says, []).append(cell.subject)
    if len(made) <= 1:
        return list(made)
    return [f"{', '.join(clean(one, 40) for one in dict.fromkeys(who))}: {says}" for says, who in made.items()]


def ordered(subjects: Iterable[SubjectFacts]) -> list[SubjectFacts]:
    """Undefended ones first, then defenses, then the controls they must beat."""
    return sorted(subjects, key=lambda facts: (facts.twin is not None, facts.control))


def role(facts: SubjectFacts) -> str:
    """What a subject is there for."""
    if facts.twin is None:
        return "undefended"
    return "control" if facts.control else "defense"


class Index:
    """A dossier, looked up by subject and attack."""

    def __init__(self, dossier: Dossier):
        self.dossier = dossier
        self.subjects = ordered(dossier.subjects)
        attacks = sorted(dossier.manifest.attacks, key=lambda one: list(FAMILIES).index(one.family))
        walked = {one.attack for one in dossier.curves if one.landscape}
        self.landscapes = [one for one in attacks if one.name in walked]
        self.negative = [one for one in attacks if one.negative_control]
        self.attacks = [one for one in attacks if not one.negative_control and not walks(one)]
        self._curves = {(one.subject, one.attack): one for one in dossier.curves}
        self._conclusions = {one.subject: one for one in dossier.conclusions}
        self._verdicts = {(one.subject, one.attack): one for one in dossier.verdicts}
        self._cells: dict[tuple[str, str], list[Cell]] = {}
        self._looks: dict[tuple[str, str], dict[float, list[Look]]] = {}
        for cell in dossier.cells:
            self._cells.setdefault((cell.subject, cell.attack), []).append(cell)

    def curve(self, subject: SubjectFacts, attack: AttackFacts) -> Curve | None:
        """The subject's curve under the attack, None where it has no point."""
        curve = self._curves.get((subject.name, attack.name))
        return curve if curve and curve.points else None

    def curves(self, attack: AttackFacts) -> list[tuple[int, SubjectFacts, Curve]]:
        """Every subject's curve under the attack, with the subject's turn."""
        return [(turn, one, curve) for turn, one in enumerate(self.subjects) if (curve := self.curve(one, attack))]

    def verdict(self, subject: SubjectFacts, attack: AttackFacts) -> Verdict | None:
        return self._verdicts.get((subject.name, attack.name))

    def conclusion(self, subject: SubjectFacts) -> Conclusion | None:
        """What is said of the subject over all attacks; None for one without a twin."""
        return self._conclusions.get(subject.name)

    def hardening(self, subject: SubjectFacts) -> Cost | None:
        """What the subject's hardening took, with those that it was put on; None where none was recorded."""
        named = {one.name: one for one in self.subjects}
        at: SubjectFacts | None = subject
        took: list[Cost] = []
        while at and at.hardening and len(took) < len(named):
            took.append(at.hardening)
            at = named.get(at.on or "")
        spent = ("examples", "tokens", "flops", "seconds")
        return Cost(**{name: sum(getattr(one, name) for one in took) for name in spent}) if took else None

    def cells(self, subject: SubjectFacts, attack: AttackFacts) -> list[Cell]:
        return self._cells.get((subject.name, attack.name), [])

    def looks(self, subject: SubjectFacts, attack: AttackFacts) -> dict[float, list[Look]]:
        """All milestones of the subject under the attack, as `survival.looks`."""
        key = subject.name, attack.name
        if key not in self._looks:
            self._looks[key] = survival.looks(self.cells(subject, attack))
        return self._looks[key]

    def end(self, attack: AttackFacts) -> float:
        """The last position that any subject reached, in the attack's order."""
        lasts = [curve.points[-1].position for _, _, curve in self.curves(attack)]
        return max(lasts, default=0.0) if attack.axis == "steps" else (lasts or [0.0])[0]

    def reach(self, attack: AttackFacts, subject: SubjectFacts) -> float:
        """How far along the path the subject can be said to have held or not: on a severity as far as it answers."""
        curve = self.curve(subject, attack)
        if attack.axis == "steps" or curve is None:
            return self.end(attack)
        return curve.points[max(_answered(curve) - 1, 0)].position

    def before(self, subject: SubjectFacts) -> Point | None:
        """The subject before any attack: the start of a path, a clock's if there is one."""
        everything = sorted(self.attacks + self.negative + self.landscapes, key=lambda one: one.axis != "steps")
        for attack in everything:
            curve = self.curve(subject, attack)
            if curve and (curve.points[0].position == 0 or attack.axis != "steps"):
                return curve.points[0]
        return None


def settings(content: dict[str, Any] | None, skip: Sequence[str] = ()) -> list[tuple[str, str]]:
    """Settings as pairs of name and value, both fit to be shown."""
    return [(clean(key, 60), clean(_plain(value), 120)) for key, value in (content or {}).items() if key not in skip]


def _plain(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        return ", ".join(_plain(one) for one in value)
    if isinstance(value, dict):
        return "; ".join(f"{key} {_plain(one)}" for key, one in value.items())
    return str(value)
