"""What the page says of each attack: a row a subject, its bar or dots, the numbers behind its figures. Writes no HTML."""

import math
from typing import Any

from holdfast.dossier import CostToBreak, Curve, Point
from holdfast.record import AttackFacts, SubjectFacts
from holdfast.report import figures, words
from holdfast.report.words import Index


def attack_of(index: Index, attack: AttackFacts, turn: int) -> dict[str, Any]:
    """One attack with its rows and its figures."""
    end = index.end(attack)
    rows = [_row(index, attack, facts, number, end) for number, facts in enumerate(index.subjects)]
    return {
        "facts": attack,
        "id": f"attack-{turn}",
        "clock": attack.axis == "steps",
        "end": end,
        "scale": _scale(end) if attack.axis == "steps" else [],
        "rows": [row for row in rows if row["last"] or row["verdict"]],
        "panels": figures.panels(index, attack),
        "manifest": words.manifest(cell for facts in index.subjects for cell in index.cells(facts, attack)),
        "share": _share(index, attack),
        "found": searched(index, attack),
        "positions": _positions(index, attack),
        "worst": max((point.harm.value for point in _points(index, attack) if point.harm), default=None),
    }


def searched(index: Index, attack: AttackFacts) -> str:
    """What a search promised of these settings beside what fresh prompts and seeds say; empty where none was made."""
    if attack.found is None:
        return ""
    rank = "best" if attack.found.rank == 1 else f"number {attack.found.rank}"
    says = f"Found by a search, the {rank} of {attack.found.trials} trials, which said harm {attack.found.harm:.2f}"
    audited = [facts for facts in index.subjects if facts.twin] or index.subjects
    verdict = next((one for facts in audited if (one := index.verdict(facts, attack))), None)
    if verdict is None or verdict.harm is None:
        return f"{says} on its own prompts and seeds; fresh ones gave no answer."
    gap = attack.found.harm - verdict.harm.value
    return (
        f"{says} on its own prompts and seeds; fresh ones say {words.number(verdict.harm.value)} {words.span(verdict.harm)}. "
        f"The difference, {words.signed(gap)}, is what choosing the best of many trials adds."
    )


def _row(index: Index, attack: AttackFacts, facts: SubjectFacts, turn: int, end: float) -> dict[str, Any]:
    """One subject under one attack: its curve's ends, its bar or dots, and its verdict in words."""
    verdict, curve, clock = index.verdict(facts, attack), index.curve(facts, attack), attack.axis == "steps"
    row = {
        "facts": facts,
        "turn": turn,
        "role": words.role(facts),
        "verdict": verdict,
        "before": index.before(facts),
        "last": curve.points[-1] if curve else None,
        "dots": _dots(curve) if curve and not clock else [],
        "ending": words.ending(curve) if curve else "",
        "worst": max((point for point in curve.points[1:] if point.harm), key=_harm, default=None) if curve else None,
        "disturbed": any(point.broken for point in curve.points) if curve else False,
        "bar": None,
        "twin": None,
    }
    if not verdict:
        return row
    cost, twin = verdict.cost_to_break, verdict.versus_cost_to_break
    if clock and not words.silent(verdict):
        row["bar"] = _bar(cost, twin, end)
    reach = index.reach(attack, facts)
    if twin:
        theirs = index.reach(attack, next(one for one in index.subjects if one.name == verdict.versus))
        row["twin"] = {"at": words.breaks_at(twin, theirs), "between": words.break_span(twin, theirs)}
    return row | {
        "word": words.WORDS[verdict.verdict],
        "full_word": words.word(verdict),
        "silent": words.silent(verdict),
        "broke": words.break_words(verdict, reach),
        "at": words.breaks_at(cost, reach),
        "between": words.break_span(cost, reach),
    }


def _harm(point: Point) -> float:
    return point.harm.value if point.harm else 0.0


def _share(index: Index, attack: AttackFacts) -> float | None:
    """Largest share of parameters that the attack touched in any finished cell; None if that was not recorded."""
    cells = [cell for facts in index.subjects for cell in index.cells(facts, attack) if cell.status != "failed"]
    told = [cell for cell in cells if cell.touched or not any(look.changed for look in cell.milestones)]
    return max((cell.touched_share for cell in told), default=None)


def _bar(cost: CostToBreak, twin: CostToBreak | None, end: float) -> dict[str, float | None]:
    """How long safety held, in percent of a log scale to the budget's end; where the twin broke, if it did."""
    return {
        "length": _place(cost.steps, end),
        "low": _place(cost.low, end),
        "high": _place(cost.high, end),
        "twin": _place(twin.steps, end) if twin and twin.steps is not None else None,
    }


def _place(steps: float | None, end: float) -> float:
    return 100.0 if steps is None or end <= 0 else 100 * math.log1p(min(steps, end)) / math.log1p(end)


def _scale(end: float) -> list[dict[str, float]]:
    """Where to write which numbers under the bars: 1, 3, 10, 30 and so on, and the end, which needs room at its left."""
    rounds = [base * 10**power for power in range(int(math.log10(end)) + 1) for base in (1, 3)] if end >= 1 else []
    kept = [steps for steps in rounds if _place(steps, end) < 80]
    return [{"steps": steps, "at": _place(steps, end)} for steps in (0, *kept, end)]


def _dots(curve: Curve) -> list[dict[str, float | str]]:
    """The points of a severity, from mild to severe: broken or held by most seeds, or neither for want of answers."""
    positions = [point.position for point in curve.points]
    first, width = positions[0], (positions[-1] - positions[0]) or 1.0
    return [
        {
            "at": 3 + 94 * (point.position - first) / width,
            "kind": point.status
            if point.status != "answers"
            else "broken"
            if 2 * point.broken > point.seeds
            else "held",
        }
        for point in curve.points
    ]


def _points(index: Index, attack: AttackFacts) -> list[Point]:
    return [point for facts in index.subjects if (curve := index.curve(facts, attack)) for point in curve.points]


def _positions(index: Index, attack: AttackFacts) -> list[dict[str, Any]]:
    """The table behind the figures: a row a position, a point a subject."""
    curves = [index.curve(facts, attack) for facts in index.subjects]
    looked = [{point.position: point for point in curve.points} if curve else {} for curve in curves]
    order = dict.fromkeys(position for points in looked for position in points)
    return [{"position": position, "points": [points.get(position) for points in looked]} for position in order]
