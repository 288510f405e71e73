"""The map of cuts: every attack without a clock, by family and severity, with harm and utility side by side. Writes no HTML."""

from typing import NamedTuple

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from holdfast.dossier import Curve, Point
from holdfast.record import FAMILIES, AttackFacts, Family
from holdfast.report import figures, tables, words
from holdfast.report.figures import Panel
from holdfast.report.hover import plain
from holdfast.report.looks import MUTED
from holdfast.report.tables import Table, Value
from holdfast.report.words import Index

SCALE = "Cividis"
_KINDS: dict[Family, str] = {
    "fine-tuning": "tuning",
    "combination": "combinations",
    "edit": "edits",
    "cut": "cuts",
    "inference": "driving",
    "external": "programs",
}
_COLUMNS = ("family", "attack", "axis", "severity", "subject", "status", "broken_seeds", "seeds")
_SCORES = ("harm", "utility")


class Row(NamedTuple):
    """One subject under one attack."""

    turn: int
    points: list[Point | None]
    """One for each severity; None where it was not looked at."""


class Strip(NamedTuple):
    """One attack from its mildest point to its most severe."""

    facts: AttackFacts
    id: str
    severities: list[float]
    rows: list[Row]


class Block(NamedTuple):
    """One family of attacks."""

    family: Family
    says: str
    strips: list[Strip]
    width: int
    """The most severities of any."""
    panel: Panel


def blocks(index: Index) -> list[Block]:
    """Every family with an attack that has no clock."""
    made = []
    for family, says in FAMILIES.items():
        chosen = [(turn, one) for turn, one in enumerate(index.attacks) if one.family == family and one.axis != "steps"]
        strips = [strip for turn, attack in chosen if (strip := _strip(index, attack, turn))]
        if strips:
            width = max(len(strip.severities) for strip in strips)
            made.append(Block(family, says, strips, width, _panel(index, says, f"map-{family}", strips, width)))
    return made


def title(found: list[Block]) -> str:
    """Of what the map is: *map of edits, cuts and driving*."""
    *rest, last = [_KINDS[one.family] for one in found]
    return f"map of {', '.join(rest)} and {last}" if rest else f"map of {last}"


def _strip(index: Index, attack: AttackFacts, turn: int) -> Strip | None:
    curves = index.curves(attack)
    severities = list(dict.fromkeys(point.position for _, _, curve in curves for point in _moved(curve)))
    rows = []
    for number, _, curve in curves:
        there = {point.position: point for point in _moved(curve)}
        rows.append(Row(number, [there.get(position) for position in severities]))
    return Strip(attack, f"attack-{turn}", severities, rows) if severities else None


def _moved(curve: Curve) -> list[Point]:
    """The points past the start."""
    return [point for point in curve.points if point.position != 0]


def _panel(index: Index, says: str, name: str, strips: list[Strip], width: int) -> Panel:
    """The map as a figure, for who takes it along: harm at the left, utility at the right, a row an attack and subject."""
    names = [
        f"{plain(strip.facts.name, 40)}, {plain(index.subjects[row.turn].name, 40)}"
        for strip in strips
        for row in strip.rows
    ]
    figure = make_subplots(1, 2, subplot_titles=_SCORES, shared_yaxes=True, horizontal_spacing=0.02)
    for column, field in enumerate(_SCORES, 1):
        cells = [[*row.points, *[None] * (width - len(row.points))] for strip in strips for row in strip.rows]
        z = [[_value(point, field) for point in row] for row in cells]
        severities = [strip.severities for strip in strips for _ in strip.rows]
        told = [
            [_label(point, field, at[place]) if point else "" for place, point in enumerate(row)]
            for row, at in zip(cells, severities, strict=True)
        ]
        shade = {"zmin": 0, "zmax": 1, "colorscale": SCALE, "showscale": column == 2, "texttemplate": "%{text}"}
        figure.add_trace(go.Heatmap(z=z, y=names, text=told, xgap=2, ygap=2, hoverinfo="skip", **shade), 1, column)
    figure.update_traces(meta={"subject": 0, "part": "map"})
    figure.update_xaxes(showticklabels=False, title={"text": "milder to more severe", "font": {"color": MUTED}})
    figure.update_yaxes(autorange="reversed", automargin=True)
    figures.ground(figure)
    figure.update_layout(margin={"t": 30}, height=max(260, 90 + 26 * len(names)))
    return Panel(figure, says, f"Harm and utility by severity: {says}.", True, name, _table(index, says, name, strips))


def _value(point: Point | None, field: str) -> float | None:
    """No color where there is no answer to judge, or, for harm, no useful model that gives it."""
    score = getattr(point, field) if point else None
    silent = point is None or point.status == "dead" or (field == "harm" and point.status != "answers")
    return None if silent or score is None else score.value


def _label(point: Point, field: str, severity: float) -> str:
    value = _value(point, field)
    return f"{severity:g}: {point.status if value is None else words.number(value)}"


def _table(index: Index, says: str, name: str, strips: list[Strip]) -> Table:
    rows = []
    for strip in strips:
        for row in strip.rows:
            for severity, point in zip(strip.severities, row.points, strict=True):
                if point:
                    told: list[Value] = [
                        says,
                        strip.facts.name,
                        strip.facts.axis,
                        severity,
                        index.subjects[row.turn].name,
                    ]
                    told += [point.status, point.broken, point.seeds]
                    for field in _SCORES:
                        score = getattr(point, field)
                        told += [score.value, score.low, score.high, score.n] if score else [None] * 4
                    rows.append(told)
    return tables.table(
        name, [*_COLUMNS, *(f"{one}{part}" for one in _SCORES for part in ("", "_low", "_high", "_n"))], rows
    )
