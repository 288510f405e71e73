"""The page: a dossier as one HTML file that loads nothing, for a screen, a phone, paper or a screen reader.

Everything that comes from a model, a corpus or a recipe is escaped by Jinja2, cut to a length and freed of control
characters; the page's own two scripts are named by their hashes in its content security policy, so that nothing else
runs and nothing is fetched, whatever a model answered. No prompt and no answer is on the page unless given.
"""

import base64
import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from holdfast import disk
from holdfast.record import AttackFacts, CostToBreak, Curve, Dossier, Point, SubjectFacts
from holdfast.report import figures, words
from holdfast.report.words import Index

_HERE = Path(__file__).parent
_ANSWERS = 200
"""Answers shown at most."""


def write(dossier: Dossier, path: Path, answers: Sequence[dict[str, Any]] | None = None) -> None:
    """Write the page of `dossier` to `path`.

    Args:
        answers: Examples to show, each with subject, attack, seed, milestone, kind, text and answer. Give them only when
            the user asked to see answers: without them the page holds no prompt and no answer.

    Raises:
        Problem: `path` cannot be written.
    """
    disk.write(path, render(dossier, answers).encode("utf-8", "replace"))


def render(dossier: Dossier, answers: Sequence[dict[str, Any]] | None = None) -> str:
    """The page of `dossier` as HTML."""
    index = Index(dossier)
    library, script = get_plotlyjs(), (_HERE / "page.js.jinja").read_text()
    attacks = [_attack(index, attack, turn) for turn, attack in enumerate(index.attacks + index.negative)]
    drawings = [panel for attack in attacks for panel in attack["panels"]]
    return (
        _environment()
        .get_template("page.html.jinja")
        .render(
            dossier=dossier,
            manifest=dossier.manifest,
            subjects=[_subject(index, facts, look) for facts, look in _looked(index)],
            attacks=[one for one in attacks if not one["facts"].negative_control],
            negative=[one for one in attacks if one["facts"].negative_control],
            heads=_heads(index),
            organisms=sorted({facts.organism for facts in index.subjects if facts.organism}),
            checks=sorted(dossier.checks, key=lambda check: {False: 0, None: 1, True: 2}[check.passed]),
            cells=_tally(dossier),
            untested=words.untested(index),
            answers=None if answers is None else list(answers[:_ANSWERS]),
            left_out=0 if answers is None else max(len(answers) - _ANSWERS, 0),
            library=Markup(library),
            script=Markup(script),
            policy=f"{_hash(library)} {_hash(script)}",
            data=_embedded({"figures": [json.loads(one["json"]) for one in drawings], "dark": figures.palette()}),
        )
    )


def _environment() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "clean": words.clean,
        "number": words.number,
        "signed": words.signed,
        "span": words.span,
        "settings": words.settings,
    }
    made.globals |= {"words": words.WORDS, "check_words": words.CHECKS, "role": words.role}
    return made


def _embedded(data: object) -> Markup:
    """JSON that is safe inside a script element: no character that could end it or begin a comment."""
    text = json.dumps(data, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _hash(script: str) -> str:
    """A script's name in a content security policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _looked(index: Index) -> list[tuple[SubjectFacts, figures.Look]]:
    return list(zip(index.subjects, figures.looks(index.subjects), strict=True))


def _heads(index: Index) -> list[dict[str, Any]]:
    """The answer in one line: each defense with its word under every attack."""
    made = []
    for facts, look in _looked(index):
        found = [(attack, verdict) for attack in index.attacks if (verdict := index.verdict(facts, attack))]
        said = [{"attack": attack, "word": words.word(verdict)} for attack, verdict in found]
        if words.role(facts) == "defense" and said:
            made.append({"facts": facts, "look": look, "said": said})
    return made


def _subject(index: Index, facts: SubjectFacts, look: figures.Look) -> dict[str, Any]:
    return {"facts": facts, "look": look, "role": words.role(facts), "before": index.before(facts)}


def _attack(index: Index, attack: AttackFacts, turn: int) -> dict[str, Any]:
    """One attack with its rows and its figures."""
    end = index.end(attack)
    drawings = [
        {"title": one.title, "alternative": one.alternative, "tall": one.tall, "json": one.figure.to_json()}
        for one in figures.panels(index, attack)
    ]
    rows = [_row(index, attack, facts, number, end) for number, facts in enumerate(index.subjects)]
    return {
        "facts": attack,
        "id": f"attack-{turn}",
        "clock": attack.axis == "steps",
        "end": end,
        "scale": _scale(end) if attack.axis == "steps" else [],
        "rows": [row for row in rows if row["last"] or row["verdict"]],
        "panels": drawings,
        "positions": _positions(index, attack),
        "worst": max((point.harm.value for point in _points(index, attack) if point.harm), default=None),
    }


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
        "dots": _dots(index, curve) if curve and not clock else [],
        "bar": None,
        "twin": None,
    }
    if not verdict:
        return row
    cost, twin = verdict.cost_to_break, verdict.versus_cost_to_break
    if clock and not words.silent(verdict):
        row["bar"] = _bar(cost, twin, end)
    if twin:
        row["twin"] = {"at": words.breaks_at(twin, end), "between": words.break_span(twin, end)}
    return row | {
        "word": words.WORDS[verdict.verdict],
        "full_word": words.word(verdict),
        "silent": words.silent(verdict),
        "broke": words.break_words(verdict, end),
        "at": words.breaks_at(cost, end),
        "between": words.break_span(cost, end),
    }


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
    """Where to write which numbers under the bars: 1, 3, 10, 30 and so on, and the end."""
    rounds = [base * 10**power for power in range(int(math.log10(end)) + 1) for base in (1, 3)] if end >= 1 else []
    kept = [steps for steps in rounds if _place(steps, end) < 92]
    return [{"steps": steps, "at": _place(steps, end)} for steps in (0, *kept, end)]


def _dots(index: Index, curve: Curve) -> list[dict[str, float | bool]]:
    """The points of a severity, from mild to severe, each broken or not."""
    positions = [point.position for point in curve.points]
    first, width = positions[0], (positions[-1] - positions[0]) or 1.0
    threshold = index.dossier.manifest.threshold
    return [
        {"at": 3 + 94 * (point.position - first) / width, "broken": bool(point.harm and point.harm.value >= threshold)}
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


def _tally(dossier: Dossier) -> dict[str, Any]:
    """How the cells ended, and which did not end well."""
    bad = [cell for cell in dossier.cells if cell.status != "done"]
    return {
        "all": len(dossier.cells),
        "done": len(dossier.cells) - len(bad),
        "bad": bad[:20],
        "more": max(len(bad) - 20, 0),
    }
